"""What holds when workers die, freeze, stop and compete: one attempt at a time, fenced, fair, and within caps."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from libs.common.database import Database
from libs.common.events.agents import RunStarted
from libs.common.ids import new_id
from services.agents.runs import lease_queries, operations, queries
from services.agents.runs.domain import Append, Ending, Finish, OutputWarning, RunError, RunEvent, Usage
from services.agents.runs.lease_queries import Caps
from services.agents.runs.operations import StartedRun
from services.agents.runs.scribe import Scribe
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.harness.services import Place
from tests.integration.agents.workshop import (
    FakeModel,
    agents,
    emitted,
    has_status,
    request_run,
    run_row,
    set_tier,
    stream_of,
    text_of,
)

CAPS = Caps(by_tier={"free": 1, "pro": 3}, default=1)
FINISHED = "agents.run_finished.v1"


async def lease(database: Database, *, limit: int = 64, worker: str = "w") -> list[StartedRun]:
    async with database.transaction() as conn:
        return await operations.start_runs(conn, caps=CAPS, worker=worker, lease_s=15, limit=limit)


def finish(started: StartedRun, ending: Ending, *, lease_token: int | None = None) -> Finish:
    return Finish(
        run_id=started.run.id,
        user_id=started.run.user_id,
        agent_type=started.run.agent_type,
        lease_token=lease_token or started.run.lease_token,
        ending=ending,
        last_seq=started.event.seq,
        last_text=ending.output or "",
    )


async def expire(test_database: TestDatabase, run_id: UUID) -> None:
    await test_database.execute(
        "UPDATE agent_runs SET lease_expires_at = now() - interval '1 s' WHERE id = $1 AND status = 'running'", run_id
    )


async def test_a_zombie_worker_writes_nothing(database: Database, test_database: TestDatabase, user_id: UUID) -> None:
    run_id = await request_run(database, user_id)
    [zombie] = await lease(database)
    await expire(test_database, run_id)
    [heir] = await lease(database, worker="heir")
    assert heir.run.lease_token > zombie.run.lease_token
    assert (heir.run.attempt, heir.event.data) == (2, {"attempt": 2})
    delta = RunEvent(seq=zombie.event.seq + 1, type="run.delta", data={"text": "from the grave"})
    ending = Ending.succeeded(output="from the grave", usage=Usage(), model_used="zombie")
    async with database.transaction() as conn:
        token = zombie.run.lease_token
        assert await queries.append_events(conn, [Append(run_id=run_id, lease_token=token, event=delta)]) == []
        assert await operations.finish_runs(conn, [finish(zombie, ending)]) == {}
        assert not await lease_queries.renew_leases(conn, {run_id: token}, lease_s=15)
        await lease_queries.hand_back(conn, {run_id: token})
    assert (await run_row(test_database, run_id))["leased_by"] == "heir"
    assert [it["type"] for it in await stream_of(test_database, run_id)] == ["run.queued", "run.started", "run.started"]


async def test_what_is_written_while_a_lost_run_is_taken_keeps_its_number(
    database: Database, test_database: TestDatabase, user_id: UUID
) -> None:
    run_id = await request_run(database, user_id)
    [slow] = await lease(database)
    await expire(test_database, run_id)
    delta = RunEvent(seq=slow.event.seq + 1, type="run.delta", data={"text": "just in time"})
    async with database.transaction() as conn:
        append = Append(run_id=run_id, lease_token=slow.run.lease_token, event=delta)
        assert await queries.append_events(conn, [append]) == [run_id]
        heir = asyncio.create_task(lease(database, worker="heir"))

        async def waits_for_the_run() -> bool:
            return await test_database.fetchval(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock')"
            )

        await eventually(waits_for_the_run)
    assert await heir == [], "it is taken at the next look, behind what was written"
    [later] = await lease(database, worker="heir")
    assert (later.run.attempt, later.event.seq) == (2, delta.seq + 1)


async def test_a_start_is_told_as_an_event_in_the_trace_of_its_run(
    database: Database, test_database: TestDatabase, user_id: UUID
) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    run_id = await request_run(database, user_id, traceparent=trace)
    before = new_id()
    [started] = await lease(database)
    [row] = await test_database.fetch("SELECT id, subject, data, traceparent FROM agents.outbox")
    told = RunStarted(run_id=run_id, user_id=user_id, attempt=1)
    assert row["data"] == told.model_dump(mode="json")
    assert (row["subject"], row["traceparent"], started.run.attempt) == (told.subject, trace, 1)
    assert row["id"].version == before.version
    assert before.int >> 80 <= row["id"].int >> 80 <= new_id().int >> 80, "in the order of time, as all events"


async def test_deltas_of_many_runs_written_together_have_each_its_own_fence(
    database: Database, test_database: TestDatabase
) -> None:
    run_ids = [await request_run(database, new_id()) for _ in range(3)]
    started = {it.run.id: it for it in await lease(database)}
    scribe = Scribe(database)

    def delta(run_id: UUID, *, older_by: int) -> Append:
        event = RunEvent(seq=started[run_id].event.seq + 1, type="run.delta", data={"text": "x"})
        return Append(run_id=run_id, lease_token=started[run_id].run.lease_token - older_by, event=event)

    deltas = [delta(run_id, older_by=age) for run_id, age in zip(run_ids, (0, 1_000, 0), strict=True)]
    assert await asyncio.gather(*(scribe.append(it) for it in deltas)) == [True, False, True]
    assert await scribe.append(deltas[0]), "the same delta again is no second one"
    texts = [text_of(await stream_of(test_database, run_id)) for run_id in run_ids]
    assert texts == ["x", "", "x"]


async def test_runs_that_end_together_have_each_its_own_fence_and_its_own_end(
    database: Database, test_database: TestDatabase
) -> None:
    run_ids = [await request_run(database, new_id()) for _ in range(4)]
    started = {it.run.id: it for it in await lease(database)}
    scribe = Scribe(database)
    good, failed, fenced, other = (started[run_id] for run_id in run_ids)
    used = Usage(input_tokens=3, output_tokens=2, cost_micro_usd=7)
    warning = OutputWarning(code="agents.odd", detail="Odd.")
    ends = [
        finish(
            good,
            Ending.succeeded(
                output='"é" \\ text', usage=used, model_used="m", warnings=[warning], atoms=["a@1", "b@2"]
            ),
        ),
        finish(failed, Ending.crashed(RunError(code="agents.internal", detail="Ours."))),
        finish(fenced, Ending.succeeded(output="no", usage=used, model_used="m"), lease_token=1),
        finish(other, Ending.succeeded(output="", usage=Usage(), model_used="m")),
    ]
    ended = await asyncio.gather(*map(scribe.finish, ends))
    assert [run and run.status for run in ended] == ["succeeded", "failed", None, "succeeded"]
    assert not await scribe.finish(ends[0]), "an ended run does not end again"
    row = await run_row(test_database, good.run.id)
    assert (row["status"], row["output"], row["model_used"], row["atoms"]) == (
        "succeeded",
        '"é" \\ text',
        "m",
        ["a@1", "b@2"],
    )
    assert (row["input_tokens"], row["output_tokens"], row["cost_micro_usd"], row["is_billable"]) == (3, 2, 7, True)
    assert (row["error"], row["warnings"]) == (None, [warning.as_dict()])
    row = await run_row(test_database, failed.run.id)
    assert (row["status"], row["error"]["code"], row["atoms"]) == ("failed", "agents.internal", [])
    types = [[it["type"] for it in await stream_of(test_database, run_id)] for run_id in run_ids]
    assert types == [
        ["run.queued", "run.started", "run.delta", "run.usage", "run.succeeded"],
        ["run.queued", "run.started", "run.failed"],
        ["run.queued", "run.started"],
        ["run.queued", "run.started", "run.succeeded"],
    ]
    told = {it["run_id"]: (it["outcome"], it["output_tokens"]) for it in await emitted(test_database, FINISHED)}
    assert told == {
        str(run_ids[0]): ("succeeded", 2),
        str(run_ids[1]): ("failed", 0),
        str(run_ids[3]): ("succeeded", 0),
    }


async def test_a_frozen_worker_that_wakes_up_is_fenced_while_its_heir_finishes(
    place: Place, database: Database, user_id: UUID
) -> None:
    frozen = FakeModel(pieces=["old "], waits=True, last_pieces=["never seen"])
    heir = FakeModel(pieces=["new"], waits=True)
    # It neither renews its lease nor has room to lease the run again itself: as a stopped process.
    async with agents(place, frozen, agents_lease_s=60, agents_heartbeat_s=60, agents_max_parallel_runs=1):
        run_id = await request_run(database, user_id)
        await eventually(lambda: said(place.database, run_id, "old "))
        async with agents(place, heir):
            await expire(place.database, run_id)
            await eventually(lambda: said(place.database, run_id, "new"))
            frozen.go_on.set()
            await eventually(lambda: is_idle(frozen))
            assert (await run_row(place.database, run_id))["status"] == "running"
            heir.go_on.set()
            row = await has_status(place.database, run_id, "succeeded")
    assert row["output"] == "new"
    events = await stream_of(place.database, run_id)
    assert [it["seq"] for it in events] == list(range(1, len(events) + 1))
    assert text_of(events) == "new"
    assert len(await emitted(place.database, FINISHED)) == 1


async def said(test_database: TestDatabase, run_id: UUID, text: str) -> bool:
    return text_of(await stream_of(test_database, run_id)) == text


async def is_idle(model: FakeModel) -> bool:
    return model.at_work == 0


async def test_a_database_that_drops_connections_costs_a_run_nothing(
    place: Place, database: Database, user_id: UUID
) -> None:
    model = FakeModel(waits=True, last_pieces=[" Still", " here."])
    async with agents(place, model):
        run_id = await request_run(database, user_id)
        await eventually(lambda: said(place.database, run_id, "Hello there."))
        for _ in range(3):
            await place.database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'venture-agents' AND datname = current_database()"
            )
            model.go_on.set()
        row = await has_status(place.database, run_id, "succeeded")
    assert (row["attempt"], row["output"]) == (1, "Hello there. Still here.")
    assert text_of(await stream_of(place.database, run_id)) == row["output"]
    assert len(await emitted(place.database, FINISHED)) == 1


async def test_a_killed_worker_s_run_gets_a_second_attempt(place: Place, database: Database, user_id: UUID) -> None:
    run_id = await request_run(database, user_id)
    [dead] = await lease(database)
    async with database.transaction() as conn:
        delta = RunEvent(seq=3, type="run.delta", data={"text": "half an ans"})
        append = Append(run_id=run_id, lease_token=dead.run.lease_token, event=delta)
        assert await queries.append_events(conn, [append]) == [run_id]
    async with agents(place, FakeModel()):
        await expire(place.database, run_id)
        row = await has_status(place.database, run_id, "succeeded")
    events = await stream_of(place.database, run_id)
    assert [it["seq"] for it in events] == list(range(1, len(events) + 1))
    assert [it["data"] for it in events if it["type"] == "run.started"] == [{"attempt": 1}, {"attempt": 2}]
    assert text_of(events) == row["output"] == "Hello there."
    assert len(await emitted(place.database, FINISHED)) == 1


async def test_three_broken_attempts_fail_the_run_at_no_charge(place: Place, database: Database, user_id: UUID) -> None:
    run_id = await request_run(database, user_id)
    for attempt in range(1, 4):
        (started,) = await lease(database)
        async with database.transaction() as conn:
            delta = RunEvent(seq=started.event.seq + 1, type="run.delta", data={"text": f"Attempt {attempt}"})
            append = Append(run_id=run_id, lease_token=started.run.lease_token, event=delta)
            await queries.append_events(conn, [append])
        await expire(place.database, run_id)
    assert await lease(database) == []
    async with agents(place, FakeModel()):
        row = await has_status(place.database, run_id, "failed")
    assert (row["error"]["code"], row["output"]) == ("agents.attempts_exhausted", "Attempt 3")
    assert text_of(await stream_of(place.database, run_id)) == "Attempt 3"
    [finished] = await emitted(place.database, FINISHED)
    assert (finished["outcome"], finished["is_billable"]) == ("failed", False)


async def test_a_lost_run_that_was_to_be_cancelled_is_not_tried_again(
    place: Place, database: Database, user_id: UUID
) -> None:
    run_id = await request_run(database, user_id)
    await lease(database)
    async with database.transaction() as conn:
        await operations.cancel_run(conn, run_id)
    await expire(place.database, run_id)
    model = FakeModel()
    async with agents(place, model):
        await has_status(place.database, run_id, "cancelled")
    assert model.prompts == []


async def test_an_orderly_stop_hands_runs_back_without_spending_an_attempt(
    place: Place, database: Database, user_id: UUID
) -> None:
    model = FakeModel(waits=True)
    async with agents(place, model, agents_shutdown_grace_s=0.1):
        run_id = await request_run(database, user_id)
        await eventually(lambda: said(place.database, run_id, "Hello there."))
    row = await run_row(place.database, run_id)
    assert (row["status"], row["attempt"], row["handed_back"]) == ("queued", 1, 1)
    assert model.at_work == 0
    async with agents(place, FakeModel()):
        row = await has_status(place.database, run_id, "succeeded")
    assert row["attempt"] - row["handed_back"] == 1
    assert text_of(await stream_of(place.database, run_id)) == row["output"]


async def test_the_heartbeat_keeps_a_long_run_with_its_worker(place: Place, database: Database, user_id: UUID) -> None:
    model = FakeModel(waits=True)
    # A lease of many heartbeats: on a busy machine a worker may be late by some of them.
    async with agents(place, model, agents_lease_s=3, agents_heartbeat_s=0.1):
        run_id = await request_run(database, user_id)
        first = await has_status(place.database, run_id, "running")

        async def has_outlived_its_first_lease() -> bool:
            return await place.database.fetchval(
                "SELECT now() > $1::timestamptz + interval '1 s'", first["lease_expires_at"]
            )

        await eventually(has_outlived_its_first_lease)
        model.go_on.set()
        row = await has_status(place.database, run_id, "succeeded")
    assert row["attempt"] == 1


async def test_workers_that_lease_at_once_never_share_a_run_or_break_the_cap(
    database: Database, test_database: TestDatabase
) -> None:
    users = [new_id() for _ in range(6)]
    for number, user_id in enumerate(users):
        await set_tier(database, user_id, "pro" if number % 2 else "free")
        for _ in range(8):
            await request_run(database, user_id)
    leased: list[StartedRun] = []
    for _ in range(12):
        for batch in await asyncio.gather(*(lease(database, limit=2, worker=f"w{n}") for n in range(8))):
            leased += batch
        running = await test_database.fetch(
            "SELECT user_id, count(*) AS n FROM agent_runs WHERE status = 'running' GROUP BY user_id"
        )
        caps = {str(user_id): 3 if number % 2 else 1 for number, user_id in enumerate(users)}
        assert all(row["n"] <= caps[row["user_id"]] for row in running)
        async with database.transaction() as conn:
            ending = Ending.succeeded(output="", usage=Usage(), model_used="m")
            await operations.finish_runs(conn, [finish(it, ending) for it in leased[:4]])
    assert len({it.run.id for it in leased}) == len(leased)
    assert len({it.run.lease_token for it in leased}) == len(leased)


async def test_a_worker_that_leases_for_a_user_keeps_others_from_doing_so_until_it_commits(
    database: Database, test_database: TestDatabase, user_id: UUID
) -> None:
    first, second = await request_run(database, user_id), await request_run(database, user_id)
    async with database.transaction() as conn:
        [leased] = await operations.start_runs(conn, caps=CAPS, worker="a", lease_s=15, limit=9)
        assert leased.run.id == first
        # Now another worker would choose another run, and neither would see what the other does.
        await test_database.execute("UPDATE agent_runs SET priority = 9 WHERE id = $1", second)
        assert await lease(database, worker="b") == []
    assert await lease(database, worker="b") == []


async def test_a_noisy_user_s_thousandth_run_does_not_delay_another_s_first(database: Database, user_id: UUID) -> None:
    noisy, quiet = user_id, new_id()
    await set_tier(database, noisy, "pro")
    for _ in range(300):
        await request_run(database, noisy)
    first = await request_run(database, quiet)
    assert first in {it.run.id for it in await lease(database, limit=2)}


async def test_within_one_batch_everybody_gets_one_before_anybody_gets_two(database: Database) -> None:
    users = [new_id() for _ in range(4)]
    for user_id in users:
        await set_tier(database, user_id, "pro")
        for _ in range(3):
            await request_run(database, user_id)
    assert {it.run.user_id for it in await lease(database, limit=4)} == {str(it) for it in users}


async def test_an_ended_run_keeps_its_state(database: Database, test_database: TestDatabase, user_id: UUID) -> None:
    run_id = await request_run(database, user_id)
    async with database.transaction() as conn:
        await operations.cancel_run(conn, run_id)
    with pytest.raises(asyncpg.CheckViolationError, match="final"):
        await test_database.execute("UPDATE agent_runs SET status = 'queued', finished_at = NULL WHERE id = $1", run_id)
    with pytest.raises(asyncpg.UniqueViolationError):
        await test_database.execute(
            "INSERT INTO agents.run_events (run_id, seq, type) VALUES ($1, 99, 'run.failed')", run_id
        )


async def test_health_counts_who_is_not_served_and_leases_that_nobody_takes(
    database: Database, test_database: TestDatabase, user_id: UUID
) -> None:
    run_id = await request_run(database, user_id)
    await test_database.execute("UPDATE agent_runs SET queued_at = now() - interval '90 s' WHERE id = $1", run_id)
    async with database.transaction() as conn:
        assert 89 < await lease_queries.longest_unserved_s(conn) < 100
        assert await lease_queries.oldest_expired_lease_s(conn) == 0
    await request_run(database, user_id)
    await lease(database)
    async with database.transaction() as conn:
        assert await lease_queries.longest_unserved_s(conn) == 0  # the second run waits for the user's own cap
    await expire(test_database, run_id)
    async with database.transaction() as conn:
        assert await lease_queries.oldest_expired_lease_s(conn) >= 1
