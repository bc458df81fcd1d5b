"""People, messages and events for tests of the operator's tools on a running stack."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aio_pika
import httpx
import orjson
import psycopg
from psycopg import sql

from libs.common.broker import parked_queue
from libs.common.ids import new_id
from ops.stack.stack import Stack
from tests.harness.patience import eventually

PARKED_IN = "agents.gateway.entitlements_changed.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    id: str
    email: str
    client: httpx.AsyncClient


@asynccontextmanager
async def signed_up(environment: Mapping[str, str]) -> AsyncGenerator[Person, None]:
    email = f"{new_id().hex[-12:]}@example.com"
    async with httpx.AsyncClient(base_url=environment["GATEWAY_URL"], timeout=15) as client:
        client.headers["apikey"] = environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"]
        made = await client.post("/auth/v1/signup", json={"email": email, "password": "correct horse battery"})
        assert made.status_code == 200, made.text
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

    async def sent() -> tuple[Any, ...] | None:
        with psycopg.connect(environment["OPERATOR_DATABASE_URL"]) as conn:
            return conn.execute(
                """SELECT id, type, subject, data, created_at FROM gateway.outbox
                   WHERE type = 'gateway.entitlements_changed.v1' AND sent_at IS NOT NULL LIMIT 1"""
            ).fetchone()

    row = await eventually(sent)
    assert row is not None
    body = {"specversion": "1.0", "id": str(row[0]), "type": row[1], "source": "gateway", "subject": row[2],
            "time": row[4].isoformat(), "data": row[3]}  # fmt: skip
    connection = await aio_pika.connect(environment["AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        headers: dict[str, Any] = {"x-parked-reason": "attempts_exhausted", "x-parked-error": "KeyError"}
        message = aio_pika.Message(orjson.dumps(body), message_id=str(row[0]), headers=headers, delivery_mode=2)
        queue = parked_queue(PARKED_IN)
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


def find(environment: Mapping[str, str], statement: Any, *values: Any) -> Any:
    with psycopg.connect(environment["OPERATOR_DATABASE_URL"]) as conn:
        row = conn.execute(statement, values).fetchone()
    return row[0] if row else None


def contents(stack: Stack) -> dict[str, str]:
    """A digest of every row of every table, but for those that write down the passing of time for charts."""
    with psycopg.connect(stack.operator_environment()["SUPERUSER_DATABASE_URL"]) as conn:
        names = conn.execute(
            """SELECT schemaname, tablename FROM pg_tables
               WHERE schemaname IN ('public', 'auth', 'gateway', 'billing', 'metering', 'agents')
                 AND tablename NOT IN ('traffic_minutes', 'health_samples')"""
        ).fetchall()
        digests: dict[str, str] = {}
        for name in names:
            row = conn.execute(
                sql.SQL("SELECT md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {} AS t").format(
                    sql.Identifier(*name)
                )
            ).fetchone()
            digests[".".join(name)] = row[0] if row else ""
        return digests


def facts_of_billing(stack: Stack) -> dict[str, str]:
    """The digests of what billing knows: a replay leaves them as they are."""
    facts = {f"billing.{name}" for name in ("customers", "accounts", "subscriptions", "invoices", "stripe_events")}
    return {name: digest for name, digest in contents(stack).items() if name in facts}
