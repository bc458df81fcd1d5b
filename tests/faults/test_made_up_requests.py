"""Made-up requests at length, as nobody, a user and an admin: none crashes anything. `--seed` repeats them."""

import secrets

import pytest

from tests.harness.fuzzing import fuzz
from tests.harness.house import House, Person, open_house
from tests.harness.services import Place
from tests.integration.house.test_fuzzing import WITHOUT_BILLING, become_admin

EXAMPLES = 100


@pytest.mark.parametrize("who", ["nobody", "a user", "an admin"])
async def test_made_up_requests_at_length(who: str, place: Place, pytestconfig: pytest.Config) -> None:
    seed: int = pytestconfig.getoption("--seed") or secrets.randbelow(2**31)
    async with open_house(place) as house, house.person() as person:
        fuzzed = await fuzz(
            house.gateway.base_url,
            await _headers(who, house, person),
            examples=EXAMPLES,
            seed=seed,
            left_out=WITHOUT_BILLING,
        )
    print(f"\nseed {seed}; {who}: {fuzzed.requests} requests, {'clean' if fuzzed.is_clean else 'BROKEN'}")
    assert fuzzed.is_clean, fuzzed.report


async def _headers(who: str, house: House, person: Person) -> dict[str, str]:
    headers = {"apikey": house.settings.next_public_supabase_anon_key.get_secret_value()}
    if who == "nobody":
        return headers
    if who == "an admin":
        await become_admin(house, person)
    return {**headers, "Authorization": person.client.headers["Authorization"]}
