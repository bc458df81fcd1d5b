"""What paths cost while their tables grow: `make bench-growth`, or `python -m bench.growth 10000 ... 10000000`.

For each number of rows, in a database of its own: reservations, usage queries and run lists at 200 a second over HTTP,
each from another user, and the relay's claim of a whole batch of unsent events among that many sent ones. Ten rows a
user, in the ledger and in the runs. All sizes are filled first and then take turns, so that they meet the same moments;
what counts is the ratio of a round.

A history comes by and by, here it comes in seconds. So that nobody pays for that, every size alike is settled before
it is measured (vacuumed with freezing, analyzed, written out), every user has this month's counters as after a first
run, a whole turn is not counted, and neither is the first second of each path in a turn: what was measured without
this was new connections, first plans and the disk, and not how much there was to look through.

Whether a grown table was ever read from end to end on these paths is asked of PostgreSQL's own statistics: that is how
a missing index shows, whatever the statement.
"""

import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import orjson
import uvloop

from bench import plots
from bench.frame import OURS, Column, Contender, Figures, Report, Results, Target, alternate, at_most
from bench.load import as_bytes, at_rate
from bench.metering_reservations import grow
from bench.report import IMAGES, publish
from bench.service_process import service
from libs.common import database as db
from libs.common import outbox
from libs.common.events.agents import RunStarted
from libs.common.ids import new_id
from services.agents.settings import Settings as AgentsSettings
from services.metering.settings import Settings as MeteringSettings
from tests.builders import an_event
from tests.harness.database import TestDatabase, new_database
from tests.harness.servers import Servers, start_servers
from tests.harness.services import Place, service_headers

SIZES: Final = (10_000, 100_000, 1_000_000)
PER_USER: Final = 10
PER_S: Final = 200
SECONDS: Final = float(os.environ.get("BENCH_SECONDS", "4"))
WARM_UP_S: Final = 1
CLAIMS: Final = 20
PATHS: Final = ("reservation", "usage", "run_list", "relay")
GROWN: Final = ("usage_ledger", "usage_metrics", "booked_events", "agent_runs", "outbox", "inbox", "holds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    method: str
    path: str
    audience: str

    def requests(self, users: int) -> Iterator[bytes]:
        chance = random.Random(1)  # noqa: S311 - the same users every time
        while True:
            headers = service_headers(self.audience, user_id=UUID(int=chance.randint(1, users)))
            body = b""
            if self.method == "POST":
                headers["Content-Type"] = "application/json"
                body = orjson.dumps({"hold_id": str(new_id()), "amounts": {"runs": 1, "tokens": 100}})
            yield as_bytes(self.method, self.path, headers=headers, body=body)


RESERVATION: Final = Path(method="POST", path="/internal/holds", audience="metering")
USAGE: Final = Path(method="GET", path="/internal/usage", audience="metering")
RUN_LIST: Final = Path(method="GET", path="/internal/runs?limit=20", audience="agents")


async def fill(database: TestDatabase, rows: int, users: int) -> None:
    await grow(database, rows, users)
    await database.execute(
        """
        INSERT INTO agent_runs
            (id, user_id, agent_type, task, status, output, max_output_tokens, created_at, finished_at)
        SELECT public.uuid_v7(), lpad(to_hex(n % $2 + 1), 32, '0')::uuid::text, 'suggestion', 'Plan a launch',
            'succeeded', repeat('Talk to ten customers. ', 10), 500, now() - n * interval '1 second', now()
        FROM generate_series(1, $1::bigint) AS n
        """,
        rows,
        users,
    )
    await database.execute(
        """
        INSERT INTO agents.outbox (id, type, data, created_at, sent_at)
        SELECT public.uuid_v7(), 'agents.run_started.v1', '{}', now(), now() FROM generate_series(1, $1::bigint)
        """,
        rows,
    )
    await database.execute(
        """
        INSERT INTO usage_metrics (user_id, metric_type, period_start, period_end)
        SELECT lpad(to_hex(n), 32, '0')::uuid::text, metric, metering.period_start(now()), metering.period_end(now())
        FROM generate_series(1, $1::bigint) AS n, unnest(ARRAY['runs', 'tokens']) AS metric
        ON CONFLICT DO NOTHING
        """,
        users,
    )
    await database.execute("VACUUM (FREEZE, ANALYZE)")
    await database.execute("CHECKPOINT")
    await asyncio.to_thread(os.sync)  # the server that throws its data away leaves the disk to the kernel


async def claims_ms(database: TestDatabase) -> list[float]:
    """How long the relay's claim takes, with nothing sent in between."""
    took_ms: list[float] = []
    async with db.connect(database.url("venture_agents"), application_name="bench-growth") as own:
        for _ in range(CLAIMS):
            async with own.transaction() as conn:
                await outbox.add(conn, *(an_event(RunStarted, user_id=new_id()) for _ in range(outbox.BATCH_SIZE)))
            async with own.transaction() as conn:
                began = time.perf_counter()
                rows = await outbox.claim_unsent(conn, limit=outbox.BATCH_SIZE)
                took_ms.append((time.perf_counter() - began) * 1000)
                await outbox.mark_sent(conn, [row.id for row in rows])
    return took_ms


async def scans(database: TestDatabase, rows: int) -> dict[str, int]:
    """How often each table that has grown was read from end to end so far."""
    await asyncio.sleep(1.5)  # statistics are told a second after they are made
    tables = await database.fetch(
        """
        SELECT relname, sum(seq_scan)::bigint AS scans FROM pg_stat_user_tables
        WHERE n_live_tup > $2 AND relname ~ ('^(' || array_to_string($1::text[], '|') || ')')
        GROUP BY relname
        """,
        list(GROWN),
        rows // 20,
    )
    return {table["relname"]: table["scans"] for table in tables}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """Services on a database with so many rows."""

    rows: int
    database: TestDatabase
    metering_url: str
    agents_url: str

    @property
    def name(self) -> str:
        return f"{self.rows:,} rows, {self.rows // PER_USER:,} users"

    async def measure(self) -> Figures:
        """Quantiles by path in milliseconds."""
        users, figures = self.rows // PER_USER, dict[str, float]()
        asked = ((RESERVATION, self.metering_url), (USAGE, self.metering_url), (RUN_LIST, self.agents_url))
        for name, (path, url) in zip(PATHS, asked, strict=False):
            requests = path.requests(users)
            await at_rate(url, requests, per_s=PER_S, seconds=WARM_UP_S)
            outcome = await at_rate(url, requests, per_s=PER_S, seconds=SECONDS)
            outcome.require(201 if path.method == "POST" else 200)
            took = outcome.figures()
            figures |= {f"{name}_p50_ms": took["p50_ms"], f"{name}_p95_ms": took["p95_ms"]}
        cuts = statistics.quantiles(await claims_ms(self.database), n=20, method="inclusive")
        return {**figures, "relay_p50_ms": cuts[9], "relay_p95_ms": cuts[18]}

    async def scans(self) -> dict[str, int]:
        return await scans(self.database, self.rows)


@asynccontextmanager
async def grown(servers: Servers, rows: int) -> AsyncGenerator[Grown, None]:
    async with new_database(servers) as database:
        began = time.monotonic()
        await fill(database, rows, rows // PER_USER)
        print(f"{rows:,} rows made in {time.monotonic() - began:.0f} s", flush=True)
        place = Place(database=database, vhost=servers.vhosts[0], redis_number=0)
        metering = place.settings_for(MeteringSettings, "metering", log_level="WARNING")
        agents = place.settings_for(AgentsSettings, "agents", log_level="WARNING")
        async with service("metering", metering) as (metering_url, _), service("agents", agents) as (agents_url, _):
            yield Grown(rows=rows, database=database, metering_url=metering_url, agents_url=agents_url)


async def compare(servers: Servers, sizes: list[int]) -> Report:
    async with AsyncExitStack() as stack:
        all_grown = [await stack.enter_async_context(grown(servers, rows)) for rows in sizes]
        before = [await one.scans() for one in all_grown]
        results = await alternate(
            [Contender(name=one.name, measure=one.measure, warm_up=one.measure) for one in all_grown]
        )
        after = [await one.scans() for one in all_grown]
    # Loops of the services look at all counters now and then, and may; a path of users does it with every request.
    rare = PER_S * SECONDS / 20
    found = {
        name
        for then, now in list(zip(before, after, strict=True))[1:]
        for name, count in now.items()
        if count - then.get(name, 0) > rare
    }
    draw(results, sizes)
    grew = results.ratio("reservation_p95_ms", of=all_grown[-1].name, to=all_grown[0].name)
    return Report(
        name="growth",
        title=f"Growth: what paths cost while tables grow ({OURS})",
        how=f"{PER_S} requests a second for {SECONDS:.0f} s on each path, each from another user, {PER_USER} rows "
        f"a user; the relay's claim of {outbox.BATCH_SIZE} events among as many sent ones as there are rows. Settled "
        "and warmed up alike at every size.",
        columns=[
            Column(name=f"{path}_{part}_ms", title=f"{path.replace('_', ' ')} {part} ms", digits=1)
            for path in PATHS
            for part in ("p50", "p95")
        ],
        results=results,
        targets=[
            at_most(f"reservation p95 at {sizes[-1]:,} rows within 1.3 times of {sizes[0]:,}", grew, 1.3),
            Target(
                text="no table that grew was read from end to end on these paths",
                seen=", ".join(sorted(found)) or "none was",
                is_met=not found,
            ),
        ],
        notes=[
            f"{path.replace('_', ' ')} p95: "
            f"{results.ratio(f'{path}_p95_ms', of=all_grown[-1].name, to=all_grown[0].name):.2f} times"
            for path in PATHS[1:]
        ],
    )


def draw(results: Results, sizes: list[int]) -> None:
    names = list(results.rounds)
    series = {
        f"{path.replace('_', ' ')} p95": [
            (float(rows), results.median(name, f"{path}_p95_ms")) for rows, name in zip(sizes, names, strict=True)
        ]
        for path in PATHS
    }
    picture = plots.lines("What paths cost while tables grow", series, x_title="rows", y_title="p95, ms")
    (IMAGES / "bench-growth-lines.svg").write_text(picture, encoding="utf-8")


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or list(SIZES)
    with start_servers(workers=1) as servers:
        publish(uvloop.run(compare(servers, sizes)))


if __name__ == "__main__":
    main()
