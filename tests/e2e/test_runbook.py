"""The runbook, executed: each of its blocks on a live stack, and each statement of SQL with the effect it promises."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import httpx
import orjson
import psycopg
import pytest

from libs.common.broker import parked_queue
from libs.common.ids import new_id
from ops.stack.stack import Stack
from tests.harness.operator import Operator
from tests.harness.patience import eventually
from tests.harness.runbook import Block, read_blocks, statements

WITHIN_S = 5
SQL = [one for block in read_blocks() if block.language == "sql" for one in statements(block.text)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    id: str
    email: str
    client: httpx.AsyncClient


@pytest.fixture
def operator(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(stack, capsys)


@pytest.fixture
async def person(environment: Mapping[str, str]) -> AsyncGenerator[Person, None]:
    email = f"{new_id().hex[-12:]}@example.com"
    async with httpx.AsyncClient(base_url=environment["GATEWAY_URL"], timeout=15) as client:
        client.headers["apikey"] = environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"]
        made = await client.post("/auth/v1/signup", json={"email": email, "password": "correct horse battery"})
        client.headers["Authorization"] = f"Bearer {made.json()['access_token']}"
        yield Person(id=made.json()["user"]["id"], email=email, client=client)


async def run_to_its_end(person: Person) -> str:
    body = {"task": "Name one risk", "max_output_tokens": 40}
    accepted = await person.client.post("/v1/runs", json=body, headers={"Prefer": "wait=15"})
    assert accepted.status_code == 200, accepted.text
    return accepted.json()["id"]


async def used(person: Person) -> int:
    metrics = (await person.client.get("/v1/usage")).json()["metrics"]
    return metrics["runs"]["used"] if not metrics["runs"]["held"] else -1


async def park_one(environment: Mapping[str, str]) -> str:
    """A message that was handled long ago, parked again: replaying it must change nothing."""
    with psycopg.connect(environment["OPERATOR_DATABASE_URL"]) as conn:
        row = conn.execute(
            """SELECT id, type, subject, data, created_at FROM gateway.outbox
               WHERE type = 'gateway.entitlements_changed.v1' AND sent_at IS NOT NULL LIMIT 1"""
        ).fetchone()
    assert row is not None
    body = {"specversion": "1.0", "id": str(row[0]), "type": row[1], "source": "gateway", "subject": row[2],
            "time": row[4].isoformat(), "data": row[3]}  # fmt: skip
    connection = await aio_pika.connect(environment["AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        headers: dict[str, Any] = {"x-parked-reason": "attempts_exhausted", "x-parked-error": "KeyError"}
        message = aio_pika.Message(orjson.dumps(body), message_id=str(row[0]), headers=headers, delivery_mode=2)
        queue = parked_queue("agents.gateway.entitlements_changed.v1")
        await channel.default_exchange.publish(message, routing_key=queue)
    return str(row[0])


async def stripe_event(environment: Mapping[str, str]) -> str:
    """Something happens at Stripe, and its event is stored."""
    auth = (environment["STRIPE_SECRET_KEY"], "")
    async with httpx.AsyncClient(base_url=environment["STRIPE_API_BASE"], auth=auth) as client:
        customer = (await client.post("/v1/customers", data={"email": "someone@example.com"})).json()["id"]

    async def stored() -> str | None:
        return find(environment, "SELECT id FROM billing.stripe_events WHERE object_id = %s", customer)

    return str(await eventually(stored, within_s=15))


def find(environment: Mapping[str, str], sql: Any, *values: Any) -> Any:
    with psycopg.connect(environment["OPERATOR_DATABASE_URL"]) as conn:
        row = conn.execute(sql, values).fetchone()
    return row[0] if row else None


async def test_every_block_of_the_runbook_runs(
    operator: Operator, person: Person, environment: Mapping[str, str], tmp_path: Path
) -> None:
    given = {
        "USER_ID": person.id,
        "EMAIL": person.email,
        "RUN_ID": await run_to_its_end(person),
        "EVENT_ID": await stripe_event(environment),
        "MESSAGE_ID": await park_one(environment),
        "REPORT": str(tmp_path / "launch.md"),
        "BACKUP": str(tmp_path / "backup"),
    }
    blocks = [block for block in read_blocks() if block.language == "sh" and not block.not_run]
    # The first one says that all is well, which a message parked for a later one would gainsay.
    assert blocks[0].text == "venture doctor\n"
    failed = await asyncio.to_thread(lambda: [said for block in blocks[1:] if (said := trial(operator, block, given))])
    assert not failed, "\n\n".join(failed)
    assert "ready" in Path(given["REPORT"]).read_text()
    assert operator.venture("doctor", "--wait", "20").code == 0


def trial(operator: Operator, block: Block, given: Mapping[str, str]) -> str:
    """What went wrong with a block; empty if nothing did."""
    out = ""
    lines = block.text.replace("\\\n", " ").splitlines()
    for number, line in enumerate(lines, start=1):
        answer = operator.type(line, given)
        out += answer.out
        if answer.code != (block.exits if number == len(lines) else 0):
            return f"line {block.line}: {line}\nexit {answer.code}\n{answer.out}{answer.err}"
    return "" if block.prints in out else f"line {block.line}: {block.prints!r} is not in\n{out}"


# The statements, word for word, each with the effect it promises. ----------------------------------------------------


def execute(environment: Mapping[str, str], fragment: str, user_id: str = "") -> int:
    """Run the runbook's statement that contains `fragment`, with a real id, as `venture_operator`; how many rows."""
    chosen = [one for one in SQL if fragment in one]
    assert len(chosen) == 1, chosen
    statement = chosen[0].replace("user-uuid-here", user_id)
    with psycopg.connect(environment["OPERATOR_DATABASE_URL"]) as conn:
        return conn.execute(statement.encode()).rowcount


async def test_a_manual_update_of_the_plan_reaches_limits_and_caches(
    person: Person, environment: Mapping[str, str]
) -> None:
    assert (await person.client.get("/v1/usage")).json()["metrics"]["runs"]["limit"] == 50
    assert execute(environment, "subscription_tier = 'pro',", person.id) == 1

    async def follows() -> bool:
        usage = (await person.client.get("/v1/usage")).json()
        profile = (await person.client.get("/v1/profile")).json()
        return (usage["tier"], usage["metrics"]["runs"]["limit"], profile["subscription_tier"]) == ("pro", 1000, "pro")

    await eventually(follows, within_s=WITHIN_S)
    assert execute(environment, "subscription_status != 'active'") >= 0


async def test_deleting_usage_gives_the_quota_back_and_keeps_the_books_equal(
    person: Person, environment: Mapping[str, str]
) -> None:
    for fragment in ("DELETE FROM usage_metrics \nWHERE user_id", "DELETE FROM usage_metrics um"):
        await run_to_its_end(person)

        async def one_is_used() -> bool:
            return await used(person) == 1

        await eventually(one_is_used, within_s=15)
        assert execute(environment, "ORDER BY metric_value DESC") >= 1
        assert execute(environment, fragment, person.id) >= 1

        async def none_is_used() -> bool:
            return await used(person) == 0

        await eventually(none_is_used, within_s=WITHIN_S)
    assert find(environment, "SELECT count(*) FROM metering.drift WHERE user_id = %s", person.id) == 0


async def test_a_new_admin_reaches_admin_routes_and_a_user_does_not(
    person: Person, environment: Mapping[str, str]
) -> None:
    assert (await person.client.get("/v1/admin/users")).status_code in {403, 404}
    assert execute(environment, "premium_features = jsonb_set(", person.id) == 1

    async def is_admin() -> bool:
        return (await person.client.get("/v1/admin/users")).status_code == 200

    await eventually(is_admin, within_s=WITHIN_S)


async def test_policies_are_listed_and_orphans_are_found(person: Person, environment: Mapping[str, str]) -> None:
    assert execute(environment, "FROM pg_policies") > 20
    assert execute(environment, "FROM agent_runs ar") >= 0
    assert execute(environment, "FROM background_events be") >= 0


async def test_deleting_a_user_erases_them_everywhere(person: Person, environment: Mapping[str, str]) -> None:
    run_id = await run_to_its_end(person)
    assert execute(environment, "DELETE FROM auth.users", person.id) == 1

    async def is_erased() -> bool:
        runs = find(environment, "SELECT count(*) FROM agent_runs WHERE id = %s", run_id)
        usage = find(environment, "SELECT count(*) FROM usage_metrics WHERE user_id = %s", person.id)
        return runs == usage == 0 and (await person.client.get("/v1/profile")).status_code in {401, 404}

    await eventually(is_erased, within_s=WITHIN_S)
