"""What a route needs of the plan is asked with its hold; a plan without it is told so, with the way to a larger one."""

from uuid import UUID

import orjson

from libs.common.ids import new_id
from services.gateway.domain import Identity
from services.gateway.quotas import Quotas
from services.gateway.upstreams import open_upstream
from services.metering.settings import Settings
from services.metering.wiring import build
from tests.harness.services import SERVICE_TOKEN_SECRET, Place, run_service


def identity_of(user_id: UUID) -> Identity:
    claims = {"sub": str(user_id), "role": "authenticated"}
    return Identity(user_id=user_id, session_id=None, email="ada@example.com", claims=claims)


async def test_a_plan_without_the_feature_is_refused_and_holds_nothing(place: Place) -> None:
    user = identity_of(new_id())
    async with (
        run_service(build(place.settings_for(Settings, "metering")), mode="api") as metering,
        open_upstream("metering", base_url=metering.base_url, secret=SERVICE_TOKEN_SECRET) as upstream,
    ):
        quotas = Quotas(upstream, upgrade_url="https://app.example.com/pricing")
        refusal = await quotas.hold(user, new_id(), {"runs": 1}, features=("auto_suggest",))
        assert refusal is not None
        assert refusal.status_code == 403
        told = orjson.loads(bytes(refusal.body))
        assert (told["code"], told["upgrade_url"]) == (
            "metering.feature_not_included",
            "https://app.example.com/pricing",
        )
        assert await quotas.hold(user, new_id(), {"runs": 1}, features=("models",)) is None
    assert await place.database.fetchval("SELECT sum(held_value) FROM usage_metrics WHERE metric_type = 'runs'") == 1
