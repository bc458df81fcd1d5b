"""What users and operators are told: usage now and over time, in money, and who stands near a limit."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

from libs.common.events.gateway import EntitlementsChanged
from libs.common.ids import new_id
from services.metering.accounts import operations as accounts
from tests.harness.services import Place
from tests.integration.metering.accounts import a_finished_run, finish, metering_of, reserve, set_tier
from tests.integration.metering.conftest import Door


async def runs(place: Place, user_id: UUID, count: int = 1, **facts: Any) -> None:
    async with metering_of(place.database) as database:
        for _ in range(count):
            hold = await reserve(database, user_id, amounts={"runs": 1})
            await finish(database, a_finished_run(user_id, hold.id, **facts))


async def move(place: Place, ago: str) -> None:
    """Let what was booked last have happened earlier."""
    await place.database.execute("ALTER TABLE metering.usage_ledger DISABLE TRIGGER USER")
    await place.database.execute(
        "UPDATE metering.usage_ledger SET occurred_at = now() - $1::text::interval"
        " WHERE occurred_at > now() - interval '1 minute'",
        ago,
    )


async def test_history_has_no_gaps_and_splits_by_model_and_agent_type(door: Door, place: Place, user_id: UUID) -> None:
    await runs(place, user_id, model_used="gpt", input_tokens=5, output_tokens=5, cost_micro_usd=30)
    await runs(place, user_id, model_used="claude", agent_type="generator", input_tokens=1, output_tokens=1)
    until: datetime = await place.database.fetchval("SELECT now() + interval '1 s'")
    await runs(place, new_id())  # somebody else's
    params = {"granularity": "hour", "metric": "tokens", "to": until.isoformat()}
    (whole,) = (await door.as_user(user_id, "GET", "/internal/usage/history", params=params))["series"]
    assert 24 <= len(whole["points"]) <= 25
    assert [point["used"] for point in whole["points"]] == [0] * (len(whole["points"]) - 1) + [12]
    assert whole["points"][-1]["cost_micro_usd"] == 51
    starts = [datetime.fromisoformat(point["start"]) for point in whole["points"]]
    assert all(later - earlier == timedelta(hours=1) for earlier, later in pairwise(starts))

    for group, found in (("model", {"gpt": 10, "claude": 2}), ("agent_type", {"suggestion": 10, "generator": 2})):
        split = await door.as_user(user_id, "GET", "/internal/usage/history", params={**params, "group_by": group})
        assert {one["group"]: one["points"][-1]["used"] for one in split["series"]} == found


async def test_history_by_day_and_month_shows_refunds_but_not_what_a_reset_forgave(
    door: Door, place: Place, user_id: UUID
) -> None:
    await runs(place, user_id, 2)
    await move(place, "0 s")
    await place.database.execute("ALTER TABLE metering.usage_ledger ENABLE TRIGGER USER")
    await place.database.execute("DELETE FROM usage_metrics")
    for grain, length in (("day", 31), ("month", 13)):
        answer = await door.as_user(user_id, "GET", f"/internal/usage/history?granularity={grain}&metric=runs")
        points = answer["series"][0]["points"]
        assert length - 1 <= len(points) <= length + 1
        assert points[-1]["used"] == 2


async def test_history_refuses_what_it_cannot_tell(door: Door, user_id: UUID) -> None:
    for query, code in (
        ("metric=coffee", "metering.unknown_metric"),
        ("metric=runs&group_by=password", "metering.bad_history"),
        ("granularity=hour&from=2020-01-01T00:00:00Z", "metering.bad_history"),
        ("from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z", "metering.bad_history"),
        ("granularity=minute", "invalid"),
        ("from=2026-02-01T00:00:00", "invalid"),
    ):
        refused = await door.as_user(user_id, "GET", f"/internal/usage/history?{query}", status=422)
        assert refused["code"] == code, query


async def test_top_users_and_those_near_a_limit_are_listed(door: Door, place: Place) -> None:
    users = [new_id() for _ in range(4)]
    async with metering_of(place.database) as database:
        await set_tier(database, users[1], "pro")
        async with database.transaction() as conn:
            for number, limits in ((2, {"runs": 5}), (3, {"runs": None})):
                event = EntitlementsChanged(
                    user_id=users[number], version=2, tier="free", status="active", features={"limits": limits}
                )
                await accounts.change_entitlements(conn, event)
    for user_id, count in zip(users, (42, 45, 4, 49), strict=True):
        await runs(place, user_id, count, input_tokens=0, output_tokens=0)
    top = (await door.as_operator("GET", "/top-users?metric=runs&limit=3"))["items"]
    assert [(one["user_id"], one["used"]) for one in top] == [
        (str(users[3]), 49),
        (str(users[1]), 45),
        (str(users[0]), 42),
    ]
    near = (await door.as_operator("GET", "/near-limit?percent=80"))["items"]
    assert [(one["user_id"], one["metric_type"], one["used"], one["limit"]) for one in near] == [
        (str(users[0]), "runs", 42, 50),
        (str(users[2]), "runs", 4, 5),
    ]
    assert near[0]["resets_at"].endswith("-01T00:00:00.000Z")


async def test_entitlements_tell_limits_and_features_with_the_users_own(
    door: Door, place: Place, user_id: UUID
) -> None:
    async with metering_of(place.database) as database, database.transaction() as conn:
        features = {"admin": True, "auto_suggest": True, "limits": {"runs": 7}, "thresholds": [50]}
        event = EntitlementsChanged(user_id=user_id, version=2, tier="free", status="active", features=features)
        await accounts.change_entitlements(conn, event)
    told = await door.as_user(user_id, "GET", "/internal/entitlements")
    assert (told["limits"]["runs"], told["features"]["auto_suggest"], told["thresholds"]) == (7, True, [50, 80, 100])
    assert "admin" not in told["features"]
    for feature, status in (("auto_suggest", 201), ("sso", 403)):
        body = {"hold_id": str(new_id()), "amounts": {"runs": 1}, "features": [feature]}
        await door.as_user(user_id, "POST", "/internal/holds", status=status, json=body)
    checked = await door.as_user(user_id, "GET", "/internal/limits/check?metric=runs&amount=7")
    assert checked == {"allowed": False, "current": 1, "limit": 7, "remaining": 6}


async def test_history_of_a_maximum_is_the_peak_and_of_a_latest_value_the_last_of_each_step(
    door: Door, place: Place, user_id: UUID
) -> None:
    now: datetime = await place.database.fetchval("SELECT date_trunc('hour', now())")
    told = [(2, 5, 30), (2, 40, 10), (1, 10, 20), (1, 50, 25), (1, 30, 90)]  # hours ago, minute, value
    sent = [
        {
            "specversion": "1.0",
            "id": f"{metric}-{number}",
            "source": "/robot",
            "type": "usage",
            "time": (now - timedelta(hours=hours) + timedelta(minutes=minute)).isoformat(),
            "data": {"user_id": str(user_id), "metric": metric, "value": value},
        }
        for metric in ("storage_bytes", "seats")
        for number, (hours, minute, value) in enumerate(told)
    ]
    assert (await door.report(*reversed(sent)))["accepted"] == 10
    since = (now - timedelta(hours=3)).isoformat()
    for metric, expected in (("storage_bytes", [0, 30, 90]), ("seats", [0, 10, 25])):
        params = {"granularity": "hour", "metric": metric, "from": since, "to": now.isoformat()}
        answer = await door.as_user(user_id, "GET", "/internal/usage/history", params=params)
        assert [point["used"] for point in answer["series"][0]["points"]] == expected, metric


async def test_users_see_what_is_held_for_which_run(door: Door, user_id: UUID) -> None:
    run_id = str(new_id())
    body = {"hold_id": run_id, "amounts": {"runs": 1, "tokens": 100}}
    await door.as_user(user_id, "POST", "/internal/holds", status=201, json=body)
    (mine,) = (await door.as_user(user_id, "GET", "/internal/usage/holds"))["items"]
    assert (mine["run_id"], mine["amounts"], mine["is_confirmed"]) == (run_id, body["amounts"], False)
    assert (await door.as_user(new_id(), "GET", "/internal/usage/holds"))["items"] == []
    await door.as_user(user_id, "DELETE", f"/internal/holds/{run_id}", status=204)
    assert (await door.as_user(user_id, "GET", "/internal/usage/holds"))["items"] == []
