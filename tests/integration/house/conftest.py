from collections.abc import AsyncGenerator

import httpx
import pytest

from tests.harness.house import House, open_house
from tests.harness.patience import eventually
from tests.harness.services import Place


@pytest.fixture
async def house(place: Place) -> AsyncGenerator[House, None]:
    async with open_house(place) as opened:
        yield opened


@pytest.fixture
async def operator(house: House) -> AsyncGenerator[httpx.AsyncClient, None]:
    """Signed in to the console as an admin; follows redirects as a browser does."""
    async with (
        house.person("operator@example.com") as person,
        httpx.AsyncClient(
            base_url=house.gateway.base_url,
            headers={"Origin": house.gateway.base_url},
            timeout=20,
            follow_redirects=True,
        ) as client,
    ):
        await house.place.database.execute(
            "UPDATE public.user_profiles SET premium_features = '{\"admin\": true}' WHERE user_id = $1", person.id
        )

        async def is_in() -> bool:
            form = {"email": person.email, "password": "correct horse battery"}
            return (await client.post("/console/sign-in", data=form)).status_code == 200

        await eventually(is_in, within_s=6, every_s=0.5)
        yield client
