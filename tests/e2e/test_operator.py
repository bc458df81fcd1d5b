"""`venture` on a live stack: said twice it has one effect, a dry run has none, and every act is audited."""

import asyncio
from collections.abc import AsyncGenerator, Mapping

import httpx
import psycopg
import pytest

from ops.stack.stack import Stack
from ops.venture.desk import NOT_CONFIRMED, NOT_FOUND, NOT_WELL, USAGE
from tests.harness.live import (
    PARKED_IN,
    Person,
    contents,
    facts_of_billing,
    find,
    park_one,
    run_to_its_end,
    signed_up,
    stripe_event,
    used,
)
from tests.harness.operator import Operator
from tests.harness.patience import eventually


@pytest.fixture
async def person(environment: Mapping[str, str]) -> AsyncGenerator[Person, None]:
    async with signed_up(environment) as one:
        yield one


@pytest.fixture
def operator(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(stack, capsys)


async def test_a_dry_run_of_anything_changes_nothing(
    stack: Stack, operator: Operator, person: Person, environment: Mapping[str, str]
) -> None:
    await run_to_its_end(person)
    event_id = await stripe_event(environment)
    message_id = await park_one(environment)
    try:
        await nothing_changes(stack, operator, person, environment, event_id=event_id, message_id=message_id)
    finally:
        await asyncio.to_thread(operator.venture, "parked", "discard", message_id, "--yes")


def changes(person: Person, *, event_id: str, message_id: str) -> tuple[tuple[str, ...], ...]:
    """Every command that changes something."""
    return (
        ("users", "create-admin", person.email),
        ("users", "create-admin", "nobody-yet@example.com"),
        ("users", "reset-password", person.email),
        ("users", "ban", person.email),
        ("users", "delete", person.email, "--wait"),
        ("subscription", "set", person.id, "--tier", "pro", "--customer", "cus_x"),
        ("usage", "reset", person.id),
        ("usage", "reset", "--tier", "free"),
        ("maintenance", "on"),
        ("maintenance", "off"),
        ("routes", "disable", "runs"),
        ("routes", "enable", "runs"),
        ("billing", "disable"),
        ("billing", "enable"),
        ("billing", "events", "replay", event_id),
        ("parked", "replay", "--all"),
        ("parked", "discard", message_id),
        ("migrate", "up"),
        ("migrate", "down"),
        ("rotate", "jwt"),
        ("rotate", "service"),
        ("rotate", "api-keys"),
        ("rotate", "webhook", "--new", "whsec_0123456789abcdef"),
    )


async def nothing_changes(
    stack: Stack,
    operator: Operator,
    person: Person,
    environment: Mapping[str, str],
    *,
    event_id: str,
    message_id: str,
) -> None:
    settings = stack.home.dotenv.read_text()

    async def is_settled() -> bool:
        """Whatever the house still had to do by itself is done."""
        before = contents(stack)
        unhandled = find(environment, "SELECT count(*) FROM billing.stripe_events WHERE handled_at IS NULL")
        return await used(person) == 1 and not unhandled and before == contents(stack)

    await eventually(is_settled, within_s=20, every_s=0.5)
    before = contents(stack)
    for line in changes(person, event_id=event_id, message_id=message_id):
        answer = await asyncio.to_thread(operator.ok, *line, "--dry-run")
        assert answer["dry_run"] is True, line
    reconciled = await asyncio.to_thread(operator.venture, "billing", "reconcile", "--fix", "--dry-run", "--json")
    assert reconciled.json["dry_run"] is True
    assert contents(stack) == before
    assert stack.home.dotenv.read_text() == settings
    assert [row["id"] for row in await asyncio.to_thread(operator.ok, "parked", "list")] == [message_id]


async def test_usage_reset_twice_gives_the_quota_back_once(operator: Operator, person: Person) -> None:
    await run_to_its_end(person)

    async def one_is_used() -> bool:
        return await used(person) == 1

    await eventually(one_is_used, within_s=15)
    first = await asyncio.to_thread(operator.ok, "usage", "reset", person.id, "--yes")
    second = await asyncio.to_thread(operator.ok, "usage", "reset", person.id, "--yes")
    assert {row["metric_type"] for row in first["counters"]} == {"runs", "tokens"}
    assert second["counters"] == []
    assert await used(person) == 0
    booked = find(
        operator.environment,
        "SELECT count(*) FROM metering.usage_ledger WHERE user_id = %s AND kind = 'adjustment'",
        person.id,
    )
    assert booked == 2
    drift = "SELECT count(*) FROM metering.drift WHERE user_id = %s"
    assert find(operator.environment, drift, person.id) == 0


async def test_a_parked_message_sent_back_twice_is_handled_once(
    operator: Operator, person: Person, environment: Mapping[str, str]
) -> None:
    message_id = await park_one(environment)
    handled = "SELECT count(*) FROM agents.inbox WHERE event_id::text = %s"
    assert find(environment, handled, message_id) == 1
    shown = await asyncio.to_thread(operator.ok, "parked", "show", message_id)
    assert (shown["queue"], shown["reason"]) == (PARKED_IN, "attempts_exhausted")
    first = await asyncio.to_thread(operator.ok, "parked", "replay", message_id, "--yes")
    second = await asyncio.to_thread(operator.ok, "parked", "replay", message_id, "--yes")
    assert ([row["id"] for row in first["messages"]], second["messages"]) == ([message_id], [])
    assert find(environment, handled, message_id) == 1
    assert await asyncio.to_thread(operator.ok, "parked", "list") == []


async def test_events_replayed_twice_leave_the_same_tables(
    stack: Stack, operator: Operator, person: Person, environment: Mapping[str, str]
) -> None:
    event_id = await stripe_event(environment)

    async def is_handled() -> bool:
        return find(environment, "SELECT handled_at FROM billing.stripe_events WHERE id = %s", event_id) is not None

    await eventually(is_handled, within_s=15)
    before = facts_of_billing(stack)
    for _ in range(2):
        assert (await asyncio.to_thread(operator.ok, "billing", "events", "replay", event_id, "--yes"))["objects"] == 1

    async def is_done() -> bool:
        waiting = "SELECT count(*) FROM billing.refreshes WHERE done < wanted"
        return find(environment, waiting) == 0

    await eventually(is_done, within_s=15)
    assert facts_of_billing(stack) == before


async def test_maintenance_closes_the_house_to_users_and_is_audited(operator: Operator, person: Person) -> None:
    await asyncio.to_thread(operator.ok, "maintenance", "on", "--minutes", "5", "--reason", "a test", "--yes")
    try:

        async def is_closed() -> bool:
            response = await person.client.get("/v1/usage")
            return response.status_code == 503 and response.json()["retryAfter"] == 3600

        await eventually(is_closed, within_s=5)
    finally:
        await asyncio.to_thread(operator.ok, "maintenance", "off", "--yes")

    async def is_open() -> bool:
        return (await person.client.get("/v1/usage")).status_code == 200

    await eventually(is_open, within_s=5)
    log = "SELECT count(*) FROM gateway.audit_log WHERE action = 'maintenance' AND actor LIKE 'operator:%%'"
    assert find(operator.environment, log) >= 2


async def test_one_route_closes_and_the_others_stay_open(operator: Operator, person: Person) -> None:
    await asyncio.to_thread(operator.ok, "routes", "disable", "usage", "--minutes", "5", "--yes")
    try:

        async def only_it_is_closed() -> bool:
            closed = (await person.client.get("/v1/usage")).status_code
            return (closed, (await person.client.get("/v1/profile")).status_code) == (503, 200)

        await eventually(only_it_is_closed, within_s=5)
    finally:
        await asyncio.to_thread(operator.ok, "routes", "enable", "usage", "--yes")

    async def is_open() -> bool:
        return (await person.client.get("/v1/usage")).status_code == 200

    await eventually(is_open, within_s=5)


async def test_trace_tells_a_runs_way_in_one_timeline(operator: Operator, person: Person) -> None:
    run_id = await run_to_its_end(person)

    async def is_booked() -> bool:
        return await used(person) == 1

    await eventually(is_booked, within_s=15)
    traced = await asyncio.to_thread(operator.ok, "trace", run_id)
    where = {step["where"] for step in traced["steps"]}
    said = " ".join(step["what"] for step in traced["steps"])
    assert {"gateway", "metering", "agents"} <= where
    for step in ("held", "accepted", "received", "run.started", "run.succeeded", "booked usage: runs", "hold settled"):
        assert step in said, f"{step} is missing in {said}"
    assert [step["at"] for step in traced["steps"]] == sorted(step["at"] for step in traced["steps"])


async def test_a_ban_and_an_admins_rights_take_effect(operator: Operator, person: Person) -> None:
    await asyncio.to_thread(operator.ok, "users", "create-admin", person.email, "--yes")

    async def is_admin() -> bool:
        return (await person.client.get("/v1/admin/users")).status_code == 200

    await eventually(is_admin, within_s=5)
    await asyncio.to_thread(operator.ok, "users", "ban", person.id, "--duration", "1h", "--yes")

    async def is_shut_out() -> bool:
        return (await person.client.get("/v1/profile")).status_code in {401, 403}

    await eventually(is_shut_out, within_s=60)
    shown = await asyncio.to_thread(operator.ok, "users", "show", person.id)
    assert (shown["is_admin"], shown["is_banned"]) == (True, True)
    assert {row["action"] for row in shown["audit"]} == {"user_changed"}


async def test_a_password_reset_sends_a_mail(operator: Operator, person: Person) -> None:
    await asyncio.to_thread(operator.ok, "users", "reset-password", person.email, "--yes")
    async with httpx.AsyncClient(base_url=operator.environment["MAIL_API_URL"]) as mailbox:

        async def has_arrived() -> bool:
            return person.email in (await mailbox.get("/api/v1/messages")).text

        await eventually(has_arrived, within_s=15)


async def test_deleting_with_wait_returns_when_all_have_erased(operator: Operator, person: Person) -> None:
    await run_to_its_end(person)
    erased = await asyncio.to_thread(operator.ok, "users", "delete", person.email, "--wait", "--yes")
    assert erased["is_complete"] is True
    assert find(operator.environment, "SELECT count(*) FROM agent_runs WHERE user_id = %s", person.id) == 0
    again = await asyncio.to_thread(operator.ok, "users", "delete", person.id, "--yes")
    assert again["is_complete"] is True


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (("users", "show", "nobody@example.com"), NOT_FOUND),
        (("maintenance", "on"), NOT_CONFIRMED),
        (("no-such-command",), USAGE),
        (("subscription", "set", "nobody@example.com", "--tier", "gold", "--yes"), NOT_WELL),
        (("parked", "discard", "none", "--yes"), NOT_FOUND),
        (("runs", "show", "none"), NOT_WELL),
    ],
)
def test_exit_codes_tell_what_kind_of_no_it_is(operator: Operator, line: tuple[str, ...], code: int) -> None:
    answer = operator.venture(*line)
    assert answer.code == code, answer.out + answer.err
    assert "Traceback" not in answer.err


def test_the_audit_log_cannot_be_changed_by_its_writers(environment: Mapping[str, str]) -> None:
    with psycopg.connect(environment["OPERATOR_DATABASE_URL"], autocommit=True) as conn:
        for statement in ("UPDATE gateway.audit_log SET actor = 'x'", "DELETE FROM gateway.audit_log"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement.encode())
