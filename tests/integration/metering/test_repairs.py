"""Putting numbers right: every act is a booking, safe to repeat, and leaves ledger and counters equal."""

from typing import Any
from uuid import UUID

import asyncpg
import pytest

from libs.common.ids import new_id
from services.metering import operations
from services.metering.ledger.domain import event_key
from services.metering.repairs import jobs
from services.metering.repairs.jobs import DriftWatch, LedgerWatch
from tests.harness.database import TestDatabase
from tests.harness.services import Place
from tests.integration.metering.accounts import (
    PLANS,
    a_finished_run,
    counters,
    expire_holds,
    finish,
    has_no_drift,
    metering_of,
    reserve,
    set_tier,
)
from tests.integration.metering.conftest import Door


async def a_run(test_database: TestDatabase, user_id: UUID, **facts: Any) -> UUID:
    async with metering_of(test_database) as database:
        hold = await reserve(database, user_id)
        await finish(database, a_finished_run(user_id, hold.id, **facts))
    return hold.id


async def test_a_refund_takes_back_what_is_booked_once(door: Door, place: Place, user_id: UUID) -> None:
    run_id, _ = [await a_run(place.database, user_id) for _ in range(2)]
    refund = {"reason": "the answer was empty"}
    first = await door.as_operator("POST", f"/runs/{run_id}/refund", json=refund)
    again = await door.as_operator("POST", f"/runs/{run_id}/refund", json=refund)
    assert (first["changes"], again["changes"]) == ({"runs": -1, "tokens": -700}, {})
    assert await counters(place.database, user_id) == {"runs": (1, 0), "tokens": (700, 0)}
    told = await door.as_operator("GET", f"/users/{user_id}/ledger?metric=tokens")
    assert [(one["kind"], one["amount"], one["balance"]) for one in told["items"]] == [
        ("usage", 700, 700),
        ("usage", 700, 1_400),
        ("refund", -700, 700),
    ]
    assert told["items"][2]["attributes"] == {"run_id": str(run_id), "by": "ada", "reason": "the answer was empty"}
    assert (await door.as_user(user_id, "GET", "/internal/usage"))["cost_micro_usd"] == 21
    assert await has_no_drift(place.database)
    await door.as_operator("POST", f"/runs/{new_id()}/refund", json=refund, status=404)


async def test_a_correction_says_what_should_stand_booked(door: Door, place: Place, user_id: UUID) -> None:
    run_id = await a_run(place.database, user_id)
    for tokens, change in ((500, {"tokens": -200}), (500, {}), (900, {"tokens": 400})):
        body = {"amounts": {"tokens": tokens}, "reason": "the provider's invoice says so"}
        answer = await door.as_operator("PUT", f"/runs/{run_id}/usage", json=body)
        assert answer["changes"] == change
        assert await counters(place.database, user_id) == {"runs": (1, 0), "tokens": (tokens, 0)}
    assert await has_no_drift(place.database)


async def test_a_refund_after_a_reset_forgives_nothing_twice(door: Door, place: Place, user_id: UUID) -> None:
    run_id = await a_run(place.database, user_id)
    await place.database.execute("DELETE FROM usage_metrics")
    await a_run(place.database, user_id, input_tokens=0, output_tokens=100)
    for _ in range(2):
        await door.as_operator("POST", f"/runs/{run_id}/refund", json={"reason": "sorry"})
    assert await counters(place.database, user_id) == {"runs": (0, 0), "tokens": (0, 0)}
    await a_run(place.database, user_id)
    await door.as_operator("POST", f"/runs/{run_id}/refund", json={"reason": "sorry"})
    assert await counters(place.database, user_id) == {"runs": (1, 0), "tokens": (700, 0)}
    assert await has_no_drift(place.database)


async def test_a_reset_of_a_tier_leaves_the_others_alone(door: Door, place: Place) -> None:
    free_id, paying_id = new_id(), new_id()
    async with metering_of(place.database) as database:
        await set_tier(database, paying_id, "pro")
    for owner_id in (free_id, paying_id):
        await a_run(place.database, owner_id)
    assert await door.as_operator("POST", "/tiers/free/usage/reset") == {"counters": 2}
    assert await counters(place.database, free_id) == {}
    assert await counters(place.database, paying_id) == {"runs": (1, 0), "tokens": (700, 0)}
    assert await has_no_drift(place.database)


async def test_orphan_holds_are_listed_and_ended_by_hand(door: Door, place: Place, user_id: UUID) -> None:
    async with metering_of(place.database) as database:
        hold = await reserve(database, user_id)
        async with database.transaction() as conn:
            await operations.confirm_hold(conn, PLANS, hold_id=hold.id, user_id=user_id)
    assert (await door.as_operator("GET", "/holds/orphans"))["items"] == []
    await place.database.execute("UPDATE metering.holds SET created_at = now() - interval '2 h'")
    (orphan,) = (await door.as_operator("GET", "/holds/orphans"))["items"]
    assert (orphan["id"], orphan["amounts"], orphan["is_expired"]) == (
        str(hold.id),
        {"runs": 1, "tokens": 1_000},
        False,
    )
    ended = await door.as_operator("POST", f"/holds/{hold.id}/end")
    assert ended["given_back"] == {"runs": 1, "tokens": 1_000}
    await door.as_operator("POST", f"/holds/{hold.id}/end", status=409)
    assert await counters(place.database, user_id) == {"runs": (0, 0), "tokens": (0, 0)}
    async with metering_of(place.database) as database:
        await finish(database, a_finished_run(user_id, hold.id))
    assert await counters(place.database, user_id) == {"runs": (1, 0), "tokens": (700, 0)}
    assert await has_no_drift(place.database)


async def test_rebuilding_proves_equality_and_mends_what_differs(door: Door, place: Place) -> None:
    users = [new_id() for _ in range(8)]
    for user_id in users:
        await a_run(place.database, user_id)
    async with metering_of(place.database) as database:
        await reserve(database, users[0])
    proof = await door.as_operator("POST", "/rebuild", json={"verify": True})
    assert proof["is_equal"]
    assert proof["counters"] == proof["ledger"]
    assert (proof["counters"]["lines"], proof["counters"]["amount"], proof["counters"]["held"]) == (18, 5_608, 1_001)

    for damage in (
        "UPDATE usage_metrics SET metric_value = 3 WHERE metric_type = 'runs' AND user_id = $1",
        "UPDATE usage_metrics SET held_value = held_value + 5 WHERE metric_type = 'tokens' AND user_id = $1",
        "UPDATE usage_metrics SET metric_value = metric_value - 1, held_value = 0 WHERE user_id = $1",
    ):
        await place.database.execute(damage, str(users[0]))
        broken = await door.as_operator("POST", "/rebuild", json={"verify": True})
        assert not broken["is_equal"]
        assert broken["mended"] == []
        mended = await door.as_operator("POST", "/rebuild", json={})
        assert mended["is_equal"]
        assert {one["user_id"] for one in mended["mended"]} == {str(users[0])}
        assert mended["ledger"] == proof["ledger"]
    async with metering_of(place.database) as database:
        for bite in (1, 3, 8, 9):
            assert (await jobs.prove(database, users_at_once=bite)).ledger.as_json() == proof["ledger"]
    # A counter that is gone altogether, and the replay of one user.
    await place.database.execute("ALTER TABLE usage_metrics DISABLE TRIGGER USER")
    await place.database.execute("DELETE FROM usage_metrics WHERE user_id = $1", str(users[7]))
    replayed = await door.as_operator("POST", f"/users/{users[7]}/replay")
    assert [one["metric_type"] for one in replayed["mended"]] == ["runs", "tokens"]
    assert (await door.as_operator("POST", "/rebuild", json={"verify": True}))["is_equal"]


async def test_the_names_of_facts_are_the_same_in_sql_and_here(test_database: TestDatabase) -> None:
    name = ("agents.run", "café \n 1")
    assert await test_database.fetchval("SELECT metering.event_key($1, $2)", *name) == event_key(*name)


async def test_months_are_made_ahead_and_old_ones_detached_with_their_facts_still_booked(
    door: Door, place: Place, user_id: UUID
) -> None:
    run_id = await a_run(place.database, user_id)
    rows = place.database
    assert await rows.fetchval(
        "SELECT metering.make_ledger_months(now() - interval '16 months', now() - interval '14 months')"
    ) in {2, 3}
    old = await rows.fetchval("SELECT date_trunc('month', now() - interval '15 months', 'UTC')")
    await rows.execute(
        """
        INSERT INTO metering.usage_ledger (source, event_id, user_id, metric_type, amount, kind, period_start)
        VALUES ('x', '1', $1, 'tokens', 5, 'usage', $2)
        """,
        str(user_id),
        old,
    )
    await rows.execute(
        """
        INSERT INTO usage_metrics (user_id, metric_type, metric_value, period_start, period_end)
        VALUES ($1, 'tokens', 5, $2, metering.period_end($2))
        """,
        str(user_id),
        old,
    )
    assert await has_no_drift(rows)
    before = (await rows.fetchval("SELECT now()")).isoformat()
    detached = (await door.as_operator("POST", "/ledger/months/detach", json={"before": before}))["detached"]
    months = {one["name"]: one["is_attached"] for one in (await door.as_operator("GET", "/ledger/months"))["items"]}
    assert detached
    assert all(not months[name] for name in detached)
    assert sum(months.values()) >= 7
    assert await has_no_drift(rows)
    # What is detached is as fixed as before, and no hiding place for a deleted account.
    for name in detached:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await rows.execute(
                f"INSERT INTO metering.{name} (source, event_id, user_id, metric_type, amount, kind, period_start)"  # noqa: S608
                " VALUES ('x', '2', 'u', 'runs', 1, 'usage', now())"
            )
    await rows.execute("SELECT metering.erase_user($1)", str(user_id))
    owners = {
        row["user_id"]
        for name in detached
        for row in await rows.fetch(f"SELECT user_id FROM metering.{name}")  # noqa: S608
    }
    assert len(owners) == 1
    assert owners.pop().startswith("erased:")
    assert await rows.fetchval("SELECT EXISTS (SELECT FROM metering.booked_events WHERE key = $1)",
                               event_key("agents.run", str(run_id)))  # fmt: skip


async def test_a_spike_far_above_a_users_habit_is_told_once(test_database: TestDatabase) -> None:
    steady_id, new_user_id, spiking_id = new_id(), new_id(), new_id()

    async def used(user_id: UUID, tokens: int, *, ago: str, times: int = 1) -> None:
        await test_database.execute(
            """
            INSERT INTO metering.usage_ledger
                (source, event_id, user_id, metric_type, amount, kind, period_start, occurred_at, recorded_at)
            SELECT 'x', n::text, $1, 'tokens', $2, 'usage', metering.period_start(at), at, at
            FROM generate_series(0, $4::int - 1) AS n, LATERAL (SELECT now() - $3::text::interval * (n + 1) AS at) AS t
            """,
            str(user_id),
            tokens,
            ago,
            times,
        )

    await used(steady_id, 800_000, ago="12 hours", times=10)
    await used(spiking_id, 5_000, ago="12 hours", times=10)
    for user_id in (steady_id, new_user_id, spiking_id):
        await used(user_id, 300_000, ago="5 minutes")
    async with metering_of(test_database) as database:
        watch = LedgerWatch(database, PLANS)
        for _ in range(2):
            await watch.run_once()
    spikes = await test_database.fetch("SELECT user_id, metric_type, amount, habit_per_hour FROM metering.spikes")
    assert spikes == [{"user_id": str(spiking_id), "metric_type": "tokens", "amount": 300_000, "habit_per_hour": 298}]


async def test_drift_is_seen_within_a_round_and_stays_seen_until_a_whole_round_is_well(
    test_database: TestDatabase,
) -> None:
    for user_id in sorted(new_id() for _ in range(3)):
        await a_run(test_database, user_id)
    async with metering_of(test_database) as database:
        watch = DriftWatch(database, users_at_once=1)
        assert watch.count is None

        async def counts(looks: int) -> list[int | None]:
            seen: list[int | None] = []
            for _ in range(looks):
                await watch.run_once()
                seen.append(watch.count)
            return seen

        a_round = 4  # a look for each user, and one behind the last
        assert await counts(a_round) == [0, 0, 0, 0]
        await test_database.execute(
            """UPDATE usage_metrics SET metric_value = metric_value + 1
               WHERE user_id = (SELECT max(user_id) FROM usage_metrics)"""
        )
        assert await counts(2 * a_round) == [0, 0, 2, 2, 2, 2, 2, 2]
        await jobs.rebuild(database)
        assert await counts(2 * a_round) == [2, 2, 2, 0, 0, 0, 0, 0]


async def test_operators_routes_are_for_operators(door: Door, user_id: UUID) -> None:
    for path in ("top-users", "near-limit", "holds/orphans", "conflicts", "spikes", "ledger/months"):
        await door.as_user(user_id, "GET", f"/internal/admin/{path}", status=403)


async def test_expired_holds_are_orphans_too(door: Door, place: Place, user_id: UUID) -> None:
    async with metering_of(place.database) as database:
        await reserve(database, user_id)
    await expire_holds(place.database)
    (orphan,) = (await door.as_operator("GET", "/holds/orphans"))["items"]
    assert orphan["is_expired"]
