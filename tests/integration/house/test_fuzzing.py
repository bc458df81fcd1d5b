"""Made-up requests against every operation, as a user; as nobody and as an admin, and many more, in tests/faults."""

from tests.harness.fuzzing import LEFT_OUT, fuzz
from tests.harness.house import House, Person
from tests.harness.patience import eventually

# Billing is switched off here, and says so with 503; closing the house would have it answer everybody so.
WITHOUT_BILLING = rf"{LEFT_OUT[:-2]}|/v1/billing/.*|/billing/webhook|/v1/admin/(webhook|recon|cust|maint).*)$"


async def become_admin(house: House, person: Person) -> None:
    await house.place.database.execute(
        "UPDATE public.user_profiles SET premium_features = '{\"admin\": true}' WHERE user_id = $1", person.id
    )

    async def is_admin() -> bool:
        return (await person.client.get("/v1/admin/users")).status_code == 200

    await eventually(is_admin, within_s=10)


async def test_no_made_up_request_crashes_anything_or_is_answered_out_of_shape(house: House) -> None:
    key = {"apikey": house.settings.next_public_supabase_anon_key.get_secret_value()}
    async with house.person() as ada:
        fuzzed = await fuzz(
            house.gateway.base_url,
            {**key, "Authorization": ada.client.headers["Authorization"]},
            examples=1,
            seed=1,
            left_out=WITHOUT_BILLING,
            phases="examples,fuzzing",
        )
    assert fuzzed.is_clean, fuzzed.report
    assert fuzzed.requests > 50
