"""Usage of other programs: each event counted once for ever, whatever comes how often and in which order."""

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from libs.common.events.gateway import UserDeleted
from libs.common.events.metering import ThresholdReached
from libs.common.ids import new_id
from services.metering import consumers
from services.metering.ingest import domain
from services.metering.ingest.desk import IngestDesk
from services.metering.ingest.domain import Catalogue, Reporter, UsageEvent
from services.metering.ingest.operations import ACCEPTED, DUPLICATE, count_events
from tests.harness.database import TestDatabase
from tests.harness.services import Place
from tests.integration.metering.accounts import PLANS, counters, events, has_no_drift, metering_of
from tests.integration.metering.conftest import Door


def an_event(user_id: UUID, metric: str = "api_calls", **facts: Any) -> dict[str, Any]:
    time = facts.pop("time", None)
    return {
        "specversion": "1.0",
        "id": facts.pop("id", str(new_id())),
        "source": facts.pop("source", "/billing-robot"),
        "type": "usage",
        **({} if time is None else {"time": time}),
        "data": {"user_id": str(user_id), "metric": metric, **facts},
    }


def iso(at: datetime) -> str:
    return at.isoformat()


async def count(test_database: TestDatabase, raw: Sequence[dict[str, Any]]) -> list[str]:
    catalogue, reporter = Catalogue(PLANS), Reporter(user_id=None)
    read = [domain.read_event(one, reporter, catalogue) for one in raw]
    async with metering_of(test_database) as database, database.transaction() as conn:
        return await count_events(conn, PLANS, read)


async def test_events_are_accepted_counted_and_told_from_duplicates(door: Door, place: Place, user_id: UUID) -> None:
    sent = [an_event(user_id, endpoint="/a", status="ok"), an_event(user_id, endpoint="/a", status="error")]
    assert await door.report(*sent) == {"accepted": 2, "duplicates": 0, "rejected": []}
    assert await door.report(*sent, an_event(user_id)) == {"accepted": 1, "duplicates": 2, "rejected": []}
    assert await counters(place.database, user_id) == {"api_calls": (3, 0), "failed_api_calls": (1, 0)}
    assert await has_no_drift(place.database)


async def test_one_bad_event_spoils_no_other_and_is_told_its_reason(door: Door, place: Place, user_id: UUID) -> None:
    now = await place.database.fetchval("SELECT now()")
    bad: list[tuple[Any, str]] = [
        ("what", "not_an_object"),
        ({**an_event(user_id), "specversion": "0.3"}, "specversion_must_be_1.0"),
        ({**an_event(user_id), "id": ""}, "id_missing_or_too_long"),
        ({**an_event(user_id), "source": 7}, "source_missing_or_too_long"),
        ({**an_event(user_id), "data": []}, "data_must_be_an_object"),
        (an_event(user_id, "coffee"), "unknown_metric"),
        (an_event(user_id, "tokens"), "value_must_be_a_whole_number"),
        (an_event(user_id, "tokens", value=1.5), "value_must_be_a_whole_number"),
        (an_event(user_id, "tokens", value=-1), "value_must_be_a_whole_number"),
        (an_event(user_id, "tokens", value=True), "value_must_be_a_whole_number"),
        (an_event(user_id, "tokens", value=1, cost_micro_usd="1"), "cost_must_be_a_whole_number"),
        (an_event(user_id, time="yesterday"), "time_must_be_rfc_3339"),
        (an_event(user_id, time="2026-11-01T00:00:00"), "time_needs_an_offset"),
        (an_event(user_id, time=iso(now + timedelta(minutes=6))), "in_the_future"),
        (an_event(user_id, time=iso(now - timedelta(days=36))), "too_old"),
        (an_event(user_id, note="a\u0000b"), "text_must_not_contain_nul"),
        (an_event(user_id, note="x" * 5_000), "properties_too_long"),
        ({**an_event(user_id), "data": {"user_id": "ada", "metric": "runs"}}, "user_id_must_be_a_uuid"),
    ]
    answer = await door.report(an_event(user_id), *(event for event, _ in bad), an_event(user_id))
    assert answer["accepted"] == 2
    assert [(one["index"], one["reason"]) for one in answer["rejected"]] == [
        (index + 1, reason) for index, (_, reason) in enumerate(bad)
    ]
    assert await counters(place.database, user_id) == {"api_calls": (2, 0)}


async def test_a_contradiction_under_a_known_name_is_refused_and_kept(door: Door, user_id: UUID) -> None:
    first = an_event(user_id, "tokens", value=5, id="e1")
    other = an_event(user_id, "tokens", value=6, id="e1")
    assert (await door.report(first, other))["rejected"] == [
        {"index": 1, "id": "e1", "reason": "conflicts_with_an_earlier_event"}
    ]
    assert (await door.report(other))["rejected"][0]["reason"] == "conflicts_with_an_earlier_event"
    (conflict,) = (await door.as_operator("GET", "/conflicts"))["items"]
    assert (conflict["event_id"], conflict["user_id"], conflict["times"]) == ("e1", str(user_id), 2)
    assert conflict["content"]["readings"] == {"tokens": 6}


async def test_an_api_key_reports_for_its_owner_alone_and_takes_no_names_of_others(
    door: Door, place: Place, user_id: UUID
) -> None:
    other_id = new_id()
    mine, theirs = an_event(user_id, id="e1"), an_event(other_id, id="e1")
    assert (await door.report(mine, theirs, user_id=user_id))["rejected"] == [
        {"index": 1, "id": "e1", "reason": "not_your_user"}
    ]
    assert (await door.report(theirs, user_id=other_id))["accepted"] == 1
    assert (await door.report(mine))["accepted"] == 1  # the service role has names of its own
    assert await counters(place.database, user_id) == {"api_calls": (2, 0)}


async def test_a_person_may_not_report(door: Door, user_id: UUID) -> None:
    refused = await door.as_user(user_id, "POST", "/internal/usage/events", status=403, json=[an_event(user_id)])
    assert refused["code"] == "metering.may_not_report"


async def test_more_than_a_thousand_or_another_kind_of_body_is_refused(door: Door, user_id: UUID) -> None:
    assert (await door.report(*[an_event(user_id)] * 1_001, status=422))["code"] == "metering.not_an_event"


async def test_fifty_duplicates_at_once_are_one_row(test_database: TestDatabase) -> None:
    user_id = new_id()
    event = an_event(user_id, "tokens", value=7)
    verdicts = await asyncio.gather(*(count(test_database, [event]) for _ in range(50)))
    assert sorted(verdicts) == [[ACCEPTED]] + [[DUPLICATE]] * 49
    assert await test_database.fetchval("SELECT count(*) FROM metering.usage_ledger") == 1
    assert await counters(test_database, user_id) == {"tokens": (7, 0)}


async def test_a_duplicate_33_days_later_is_a_duplicate(test_database: TestDatabase) -> None:
    user_id = new_id()
    at = await test_database.fetchval("SELECT now() - interval '33 days'")
    event = an_event(user_id, "tokens", value=7, time=iso(at))
    assert await count(test_database, [event]) == [ACCEPTED]
    # What was booked was booked 33 days ago.
    await test_database.execute("ALTER TABLE metering.booked_events DISABLE TRIGGER USER")
    await test_database.execute("UPDATE metering.booked_events SET booked_at = booked_at - interval '33 days'")
    assert await count(test_database, [event]) == [DUPLICATE]
    assert await test_database.fetchval("SELECT count(*) FROM metering.usage_ledger") == 1


async def test_late_events_count_in_the_month_they_happened_in(test_database: TestDatabase) -> None:
    user_id = new_id()
    start = await test_database.fetchval("SELECT metering.period_start(now())")
    times = [start - timedelta(microseconds=1), start]
    await count(test_database, [an_event(user_id, "tokens", value=n + 1, time=iso(at)) for n, at in enumerate(times)])
    rows = await test_database.fetch("SELECT metric_value FROM usage_metrics ORDER BY period_start")
    assert [row["metric_value"] for row in rows] == [1, 2]
    assert await has_no_drift(test_database)


def a_history(user_id: UUID, at: datetime, chance: random.Random) -> list[dict[str, Any]]:
    """Events of every kind of meter, with equal times among them and some that happen twice."""
    sent: list[dict[str, Any]] = []
    for n in range(12):
        time = iso(at - timedelta(minutes=chance.randint(0, 5)))
        sent += [
            an_event(user_id, "tokens", value=chance.randint(0, 9), time=time, id=f"t{n}"),
            an_event(user_id, "storage_bytes", value=chance.randint(0, 99), time=time, id=f"b{n}"),
            an_event(user_id, "seats", value=chance.randint(0, 9), time=time, id=f"s{n}"),
            an_event(user_id, project=f"p{chance.randint(0, 4)}", status="error", time=time, id=f"c{n}"),
        ]
    return sent + chance.sample(sent, 10)


async def outcome_of(test_database: TestDatabase, batches: Sequence[Sequence[dict[str, Any]]], user_id: UUID) -> Any:
    for batch in batches:
        await count(test_database, batch)
    return await counters(test_database, user_id)


async def test_any_order_and_any_cut_into_batches_comes_to_the_same(test_database: TestDatabase) -> None:
    chance = random.Random(5)  # noqa: S311 - a schedule to repeat
    at = await test_database.fetchval("SELECT now()")
    template = a_history(UUID(int=1), at, chance)
    outcomes: list[Any] = []
    for _ in range(8):
        user_id = new_id()
        mine = [{**one, "source": str(user_id), "data": {**one["data"], "user_id": str(user_id)}} for one in template]
        chance.shuffle(mine)
        cut = chance.randint(1, len(mine))
        outcomes.append(await outcome_of(test_database, [mine[:cut], mine[cut:]], user_id))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    latest = max((one["time"], one["id"], one["data"]["value"]) for one in template if one["data"]["metric"] == "seats")
    assert outcomes[0]["seats"] == (latest[2], 0)
    peak = max(one["data"]["value"] for one in template if one["data"]["metric"] == "storage_bytes")
    assert outcomes[0]["storage_bytes"] == (peak, 0)
    projects = {one["data"]["project"] for one in template if "project" in one["data"]}
    assert outcomes[0]["active_projects"] == (len(projects), 0)
    assert outcomes[0]["failed_api_calls"] == outcomes[0]["api_calls"] == (12, 0)
    assert await has_no_drift(test_database)


async def test_batches_that_share_a_commit_get_verdicts_of_their_own(place: Place, user_id: UUID) -> None:
    catalogue, reporter = Catalogue(PLANS), Reporter(user_id=None)

    def read(*sent: dict[str, Any]) -> list[UsageEvent]:
        return [domain.read_event(one, reporter, catalogue) for one in sent]

    known, contradiction = an_event(user_id, id="e1"), an_event(user_id, id="e1", project="other")
    too_late = an_event(user_id, time="2020-01-01T00:00:00Z")
    async with metering_of(place.database) as database:
        desk = IngestDesk(database, PLANS)
        verdicts = await asyncio.gather(
            desk.count(read(known)),  # under way when the others come, which then share a commit
            desk.count(read(known, an_event(user_id))),
            desk.count(read(contradiction, too_late)),
            desk.count(read(an_event(user_id), an_event(user_id))),
        )
    assert verdicts == [
        [ACCEPTED],
        [DUPLICATE, ACCEPTED],
        ["conflicts_with_an_earlier_event", "too_old"],
        [ACCEPTED, ACCEPTED],
    ]
    assert await counters(place.database, user_id) == {"api_calls": (4, 0)}


async def test_a_batch_that_cannot_be_counted_takes_no_other_with_it(place: Place, user_id: UUID) -> None:
    fine = domain.read_event(an_event(user_id), Reporter(user_id=None), Catalogue(PLANS))
    broken = fine._replace(key=new_id().bytes, properties="no json")
    async with metering_of(place.database) as database:
        desk = IngestDesk(database, PLANS)
        first, bad, good = await asyncio.gather(
            desk.count([fine]), desk.count([broken]), desk.count([fine]), return_exceptions=True
        )
    assert (first, good) == ([ACCEPTED], [DUPLICATE])
    assert isinstance(bad, Exception)
    assert await counters(place.database, user_id) == {"api_calls": (1, 0)}


async def test_maxima_of_batches_at_once_do_not_add_up(test_database: TestDatabase) -> None:
    user_id = new_id()
    batches = [[an_event(user_id, "storage_bytes", value=value)] for value in range(100, 120)]
    await asyncio.gather(*(count(test_database, batch) for batch in batches))
    assert await counters(test_database, user_id) == {"storage_bytes": (119, 0)}
    assert await has_no_drift(test_database)


async def test_crossing_batches_do_not_deadlock(test_database: TestDatabase) -> None:
    users = [new_id() for _ in range(10)]
    template = [an_event(user_id, "tokens", value=1) for user_id in users]
    chance = random.Random(3)  # noqa: S311 - a schedule to repeat

    def shuffled() -> list[dict[str, Any]]:
        return chance.sample(template, len(template))

    verdicts = await asyncio.gather(*(count(test_database, shuffled()) for _ in range(12)))
    assert sum(batch.count(ACCEPTED) for batch in verdicts) == 10


async def test_thresholds_are_told_of_reported_usage_too(test_database: TestDatabase) -> None:
    user_id = new_id()
    await count(test_database, [an_event(user_id, "tokens", value=39_999)])
    assert await events(test_database, ThresholdReached.type) == []
    await count(test_database, [an_event(user_id, "tokens", value=1), an_event(user_id, "tokens", value=60_000)])
    told = await events(test_database, ThresholdReached.type)
    assert [(one["percent"], one["used"]) for one in told] == [(80, 100_000), (100, 100_000)]


async def test_a_deleted_account_is_counted_under_its_pseudonym_alone(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database, database.transaction() as conn:
        await consumers.on_user_deleted(UserDeleted(user_id=user_id), conn)
    assert await count(test_database, [an_event(user_id, "storage_bytes", value=5)]) == [ACCEPTED]
    assert await counters(test_database, user_id) == {}
    owners = await test_database.fetch("SELECT user_id FROM metering.usage_ledger")
    assert [row["user_id"].startswith("erased:") for row in owners] == [True]


@pytest.mark.parametrize("reset_by", ["DELETE FROM usage_metrics"])
async def test_after_a_reset_values_count_anew(test_database: TestDatabase, reset_by: str) -> None:
    user_id = new_id()
    sent = [
        [an_event(user_id, project="a"), an_event(user_id, "storage_bytes", value=9)],
        [an_event(user_id, project="a"), an_event(user_id, "storage_bytes", value=4)],
    ]
    await count(test_database, sent[0])
    await test_database.execute(reset_by)
    assert await counters(test_database, user_id) == {}
    await count(test_database, sent[1])
    assert await counters(test_database, user_id) == {
        "api_calls": (1, 0),
        "active_projects": (1, 0),
        "storage_bytes": (4, 0),
    }
    assert await has_no_drift(test_database)
