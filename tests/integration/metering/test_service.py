"""The whole service: its HTTP routes as the gateway calls them, and its events through the broker."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from libs.common import database as db
from libs.common import outbox, service_tokens
from libs.common.broker import open_publisher
from libs.common.events import Event
from libs.common.events.gateway import EntitlementsChanged, RunRequested
from libs.common.ids import new_id
from tests.harness.patience import eventually
from tests.harness.services import SERVICE_TOKEN_SECRET, Place, RunningService, service_headers
from tests.harness.tasks import running
from tests.integration.metering.accounts import a_finished_run, counters, has_no_drift


async def post_hold(metering: RunningService, user_id: UUID, hold_id: UUID, **amounts: Any) -> Any:
    return await metering.client.post(
        "/internal/holds",
        json={"hold_id": str(hold_id), "amounts": amounts},
        headers=service_headers("metering", user_id=user_id),
    )


async def test_asks_brought_together_get_the_answers_they_would_get_alone(
    metering: RunningService, user_id: UUID
) -> None:
    other, repeated = new_id(), new_id()

    def ask(user: UUID, hold_id: UUID, features: Sequence[str] = (), **amounts: int) -> dict[str, Any]:
        return {"hold_id": str(hold_id), "user_id": str(user), "amounts": amounts, "features": [*features]}

    asks = [
        ask(user_id, repeated, runs=1),
        ask(user_id, new_id(), runs=50),
        ask(other, new_id(), runs=50),
        ask(other, new_id(), wishes=1),
        ask(user_id, repeated, runs=1),
        ask(other, new_id(), ["auto_suggest"], runs=1),
    ]
    told = await metering.client.post(
        "/internal/holds/together", json={"asks": asks}, headers=service_headers("metering")
    )
    assert told.status_code == 200, told.text
    answers = told.json()["answers"]
    assert [answer["status"] for answer in answers] == [201, 429, 201, 422, 201, 403]
    assert answers[0] == answers[4]
    assert answers[0]["body"].keys() == {"hold_id", "expires_at", "amounts"}
    alone = await post_hold(metering, user_id, new_id(), runs=50)
    assert {**alone.json(), "trace_id": None} == {**answers[1]["body"], "trace_id": None}
    assert str(answers[1]["retry_after_s"]) == alone.headers["retry-after"] == "60"


async def test_nobody_but_the_gateway_brings_asks_together(metering: RunningService, user_id: UUID) -> None:
    asks = {"asks": [{"hold_id": str(new_id()), "user_id": str(user_id), "amounts": {"runs": 1}}]}
    for headers in (
        service_headers("metering", user_id=user_id),
        {"Authorization": f"Bearer {service_tokens.mint(SERVICE_TOKEN_SECRET, issuer='agents', audience='metering')}"},
    ):
        refused = await metering.client.post("/internal/holds/together", json=asks, headers=headers)
        assert refused.status_code == 403, refused.text
    malformed = await metering.client.post(
        "/internal/holds/together", json={"asks": []}, headers=service_headers("metering")
    )
    assert malformed.status_code == 422


async def get(metering: RunningService, user_id: UUID, path: str) -> Any:
    answer = await metering.client.get(path, headers=service_headers("metering", user_id=user_id))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_hold_is_granted_shown_and_released(metering: RunningService, user_id: UUID) -> None:
    hold_id = new_id()
    granted = await post_hold(metering, user_id, hold_id, runs=1, tokens=2_000)
    again = await post_hold(metering, user_id, hold_id, runs=1, tokens=2_000)
    assert granted.status_code == again.status_code == 201
    assert granted.json() == again.json()
    assert granted.json().keys() == {"hold_id", "expires_at", "amounts"}

    usage = await get(metering, user_id, "/internal/usage")
    resets_at = usage["period"]["end"]
    assert usage["tier"] == "free"
    assert usage["metrics"] == {
        "exports": {"used": 0, "held": 0, "limit": 2, "remaining": 2, "resets_at": resets_at},
        "runs": {"used": 0, "held": 1, "limit": 50, "remaining": 49, "resets_at": resets_at},
        "templates": {"used": 0, "held": 0, "limit": 5, "remaining": 5, "resets_at": resets_at},
        "tokens": {"used": 0, "held": 2_000, "limit": 50_000, "remaining": 48_000, "resets_at": resets_at},
    }
    checked = await get(metering, user_id, "/internal/limits/check?metric=runs&amount=50")
    assert checked == {"allowed": False, "current": 1, "limit": 50, "remaining": 49}

    for _ in range(2):
        released = await metering.client.delete(
            f"/internal/holds/{hold_id}", headers=service_headers("metering", user_id=user_id)
        )
        assert released.status_code == 204
    checked = await get(metering, user_id, "/internal/limits/check?metric=runs&amount=50")
    assert checked == {"allowed": True, "current": 0, "limit": 50, "remaining": 50}


async def test_over_the_limit_says_which_limit_and_until_when(metering: RunningService, user_id: UUID) -> None:
    assert (await post_hold(metering, user_id, new_id(), runs=50)).status_code == 201
    refused = await post_hold(metering, user_id, new_id(), runs=1, tokens=1)
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "60"
    problem = refused.json()
    assert problem["code"] == "metering.quota_exceeded"
    assert {name: problem[name] for name in ("metric", "limit", "used", "held")} == {
        "metric": "runs",
        "limit": 50,
        "used": 0,
        "held": 50,
    }
    assert problem["resets_at"].endswith("-01T00:00:00.000Z")


@pytest.mark.parametrize(
    "amounts", [{}, {"runs": 0}, {"runs": -1}, {"runs": "1"}, {"runs": True}, {"runs": 10**13}, {"coffee": 1}]
)
async def test_an_ask_that_makes_no_sense_is_refused(
    metering: RunningService, user_id: UUID, amounts: dict[str, Any]
) -> None:
    assert (await post_hold(metering, user_id, new_id(), **amounts)).status_code == 422


async def test_a_hold_needs_a_user_and_a_token_made_for_metering(metering: RunningService, user_id: UUID) -> None:
    body = {"hold_id": str(new_id()), "amounts": {"runs": 1}}
    for headers in (service_headers("metering"), service_headers("agents", user_id=user_id), {}):
        answer = await metering.client.post("/internal/holds", json=body, headers=headers)
        assert answer.status_code == 401


async def test_only_the_gateway_resets_usage(metering: RunningService, user_id: UUID) -> None:
    token = service_tokens.mint(SERVICE_TOKEN_SECRET, issuer="agents", audience="metering")
    answer = await metering.client.post(
        f"/internal/users/{user_id}/usage/reset", headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 403


async def test_a_reset_gives_the_quota_back(metering: RunningService, place: Place, user_id: UUID) -> None:
    await place.database.execute(
        """
        INSERT INTO usage_metrics (user_id, metric_type, metric_value, held_value, period_start, period_end)
        VALUES ($1, 'runs', 49, 1, metering.period_start(now()), metering.period_end(now()))
        """,
        str(user_id),
    )
    answer = await metering.client.post(f"/internal/users/{user_id}/usage/reset", headers=service_headers("metering"))
    assert answer.status_code == 204
    assert await counters(place.database, user_id) == {"runs": (0, 1)}


async def test_a_run_is_held_confirmed_and_settled_by_events_delivered_twice(
    metering: RunningService, place: Place, user_id: UUID
) -> None:
    hold_id = new_id()

    async def send(service: str, *sent: Event) -> None:
        """Through the owner's outbox and relay; then the same messages once more."""
        async with (
            db.connect(place.database.url(f"venture_{service}"), application_name="test") as database,
            open_publisher(place.amqp_url(service), name=service) as publisher,
        ):
            async with database.transaction() as conn:
                await outbox.add(conn, *sent)
            async with running(outbox.Relay(database, publisher, source=service).run):
                unsent = "SELECT count(*) = 0 FROM {}.outbox WHERE sent_at IS NULL".format(service)  # noqa: S608, UP032
                await eventually(lambda: place.database.fetchval(unsent))
                again = "UPDATE {}.outbox SET sent_at = NULL, claimed_until = '-infinity'".format(service)  # noqa: S608, UP032
                await place.database.execute(again)
                await eventually(lambda: place.database.fetchval(unsent))

    ready = metering.client.get
    await eventually(lambda: _is_ready(ready), within_s=20)
    await post_hold(metering, user_id, hold_id, runs=1, tokens=2_000)
    await send(
        "gateway",
        EntitlementsChanged(user_id=user_id, version=2, tier="pro", status="active"),
        RunRequested(run_id=hold_id, user_id=user_id, task="hello", max_output_tokens=100),
    )
    await eventually(
        lambda: place.database.fetchval(
            "SELECT confirmed_at IS NOT NULL AND expires_at > now() + interval '23 hours' FROM metering.holds"
        )
    )
    await send("agents", a_finished_run(user_id, hold_id))
    await eventually(lambda: place.database.fetchval("SELECT count(*) = 2 FROM metering.usage_ledger"))
    usage = await get(metering, user_id, "/internal/usage")
    assert usage["tier"] == "pro"
    assert usage["metrics"]["runs"]["used"] == 1
    assert usage["metrics"]["tokens"] == {
        "used": 700,
        "held": 0,
        "limit": 1_000_000,
        "remaining": 999_300,
        "resets_at": usage["period"]["end"],
    }
    assert await has_no_drift(place.database)


async def _is_ready(get: Any) -> bool:
    checks = {check["name"]: check["status"] for check in (await get("/health/ready")).json()["checks"]}
    assert "holds_expired_unswept_s" in checks
    return checks["queues_with_consumer"] == "ok"
