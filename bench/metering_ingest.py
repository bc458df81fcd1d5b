"""How many usage events a second metering counts end to end: `python -m bench.metering_ingest [batches]`.

Batches of a thousand CloudEvents of 500 users over HTTP, four at once, into the service in a process of its own; each
answer comes after the commit that claimed the events' names, wrote the ledger and moved the counters, and has reached
the disk. Every tenth batch is sent twice. Users have plans, and use so much that thresholds are told. The client makes
its events beforehand and shares the machine, as do PostgreSQL and the service.
"""

import asyncio
import os
import random
import sys
import time
from datetime import datetime, timedelta
from typing import Final

import httpx
import orjson

from bench.metering_service import cpu_s, database_pids, service_process
from libs.common import service_tokens
from libs.common.ids import new_id
from tests.harness.database import new_database
from tests.harness.servers import Servers, start_servers
from tests.harness.services import SERVICE_TOKEN_SECRET

BATCH: Final = 1_000
USERS: Final = 500
AT_ONCE: Final = 4


def a_batch(chance: random.Random, users: list[str], now: datetime) -> bytes:
    return orjson.dumps(
        [
            {
                "specversion": "1.0",
                "id": new_id().hex,
                "source": "/bench",
                "type": "usage",
                "time": (now - timedelta(seconds=chance.uniform(0, 600))).isoformat(),
                "data": {
                    "user_id": chance.choice(users),
                    "metric": "tokens",
                    "value": chance.randint(1, 900),
                    "model": "gpt-4o-mini",
                    "agent_type": "suggestion",
                },
            }
            for _ in range(BATCH)
        ]
    )


async def send(client: httpx.AsyncClient, waiting: list[bytes], answers: list[dict[str, int]]) -> None:
    token = service_tokens.mint(
        SERVICE_TOKEN_SECRET, issuer="gateway", audience="metering", user={"role": "service_role"}
    )
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/cloudevents-batch+json"}
    while waiting:
        answer = await client.post("/internal/usage/events", content=waiting.pop(), headers=headers)
        answer.raise_for_status()
        answers.append(answer.json())


async def measure(servers: Servers, batches: int) -> None:
    chance = random.Random(1)  # noqa: S311 - the same events every time
    users = [str(new_id()) for _ in range(USERS)]
    async with new_database(servers) as database, service_process(servers, database) as (url, pid):
        now = await database.fetchval("SELECT now()")
        waiting = [a_batch(chance, users, now) for _ in range(batches)]
        again = waiting[::10]
        await database.execute(
            "INSERT INTO metering.entitlements (user_id, version, tier, status) "
            "SELECT id, 1, (ARRAY['free', 'pro'])[1 + n % 2], 'active' "
            "FROM unnest($1::text[]) WITH ORDINALITY AS u(id, n)",
            users,
        )
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await asyncio.gather(*(send(client, [a_batch(chance, users, now)], []) for _ in range(AT_ONCE)))
            answers: list[dict[str, int]] = []
            todo = waiting + again
            backends = await database_pids(database)
            used_s = cpu_s([pid]), cpu_s(backends)
            started = time.perf_counter()
            await asyncio.gather(*(send(client, todo, answers) for _ in range(AT_ONCE)))
            took_s = time.perf_counter() - started
            used_s = cpu_s([pid]) - used_s[0], cpu_s(backends) - used_s[1]
        rows = await database.fetchval("SELECT count(*) FROM metering.usage_ledger")
        drift = await database.fetchval("SELECT count(*) FROM metering.drift")
        settings = {name: await database.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit")}
    accepted = sum(answer["accepted"] for answer in answers)
    duplicates = sum(answer["duplicates"] for answer in answers)
    print(
        f"{accepted + duplicates} events in {took_s:.1f} s: {(accepted + duplicates) / took_s:.0f}/s "
        f"({accepted} accepted, {duplicates} duplicates, {rows} rows, {drift} differences); processor time an event: "
        f"service {used_s[0] / (accepted + duplicates) * 1e6:.0f} us, "
        f"PostgreSQL {used_s[1] / (accepted + duplicates) * 1e6:.0f} us; "
        f"load {os.getloadavg()[0]:.1f}, {settings}"
    )


def main() -> None:
    batches = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with start_servers(workers=1, fast=False) as servers:
        for _ in range(3):
            asyncio.run(measure(servers, batches))


if __name__ == "__main__":
    main()
