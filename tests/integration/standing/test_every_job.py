"""Every job, killed at each of its steps in turn, comes to the same end when it is run again."""

import asyncio
import importlib
import inspect
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from libs.common import database as db
from services.gateway.console.jobs import HealthSampler, TrafficBook
from services.metering.repairs.jobs import DriftWatch
from tests.harness.database import new_database
from tests.harness.patience import eventually
from tests.harness.servers import Servers
from tests.integration.standing.mortality import Mortality
from tests.integration.standing.work import WORK, Work, Workplace, outcome_of

ROOT: Final = Path(__file__).parents[3]
ONLY_MEASURE: Final = {TrafficBook, HealthSampler, DriftWatch}
"""Nothing is left half done by these: a sample that is lost is a gap in a chart."""
MAX_STEPS: Final = 60


@asynccontextmanager
async def a_workplace(servers: Servers, work: Work) -> AsyncGenerator[Workplace, None]:
    async with (
        new_database(servers) as rows,
        db.connect(rows.url(f"venture_{work.service}"), application_name="standing", max_size=4) as database,
    ):
        place = Workplace(database=database, rows=rows)
        await work.prepare(place)
        assert not await rows.fetchval(work.is_done), "there is nothing to do"
        yield place


async def run(work: Work, place: Workplace, mortality: Mortality) -> None:
    """Run the job's own loops until the work is done or the process has died."""
    tasks = [asyncio.ensure_future(loop()) for loop in work.start(place, mortality)]

    async def is_over() -> bool:
        is_done = await place.rows.fetchval(work.is_done)
        ended = any(task.done() for task in tasks)
        return ended or mortality.has_died.is_set() or (is_done and not mortality.transactions)

    try:
        await eventually(is_over, within_s=20)
    finally:
        for task in tasks:
            task.cancel()
        endings = await asyncio.gather(*tasks, return_exceptions=True)
    # Killed is no Exception: what is left here is a loop that failed or ended by itself.
    assert [it for it in endings if it is None or isinstance(it, Exception)] == []


@pytest.mark.parametrize("after", [False, True], ids=["before it took effect", "after it took effect"])
@pytest.mark.parametrize("work", [pytest.param(work, id=work.job.__name__) for work in WORK])
async def test_a_job_killed_at_any_step_finishes_on_the_next_run(servers: Servers, work: Work, *, after: bool) -> None:
    async with a_workplace(servers, work) as place:
        await run(work, place, Mortality())
        undisturbed = await outcome_of(work, place)
    deaths = 0
    while await dies_and_recovers(servers, work, undisturbed, step=deaths + 1, after=after):
        deaths += 1
        assert deaths < MAX_STEPS, "the job never gets through"
    assert deaths, "the job was never killed"


async def dies_and_recovers(servers: Servers, work: Work, undisturbed: list[Any], *, step: int, after: bool) -> bool:
    """False if the work is done in fewer steps."""
    async with a_workplace(servers, work) as place:
        mortality = Mortality(dies_at=step, after=after)
        await run(work, place, mortality)
        if not mortality.has_died.is_set():
            return False
        for time_passes in work.later:
            await place.rows.execute(time_passes)
        await run(work, place, Mortality())
        assert await place.rows.fetchval(work.is_done)
        assert await outcome_of(work, place) == undisturbed, f"killed at step {step}"
    return True


def jobs_of_all_services() -> set[Any]:
    """Every class of a jobs module that has a loop."""
    jobs: set[Any] = set()
    for path in (ROOT / "services").rglob("jobs.py"):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        classes = [it for _, it in inspect.getmembers(module, inspect.isclass) if it.__module__ == module.__name__]
        jobs |= {it for it in classes if hasattr(it, "run")}
    return jobs


def test_every_job_has_work_here() -> None:
    assert jobs_of_all_services() - ONLY_MEASURE <= {work.job for work in WORK}
