"""What is shipped for looking at the product is understood by a real Prometheus, and shows what the services expose."""

import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from ops.home import ROOT
from ops.stack.stack import Stack
from tests.harness.live import run_to_its_end, signed_up, stripe_event
from tests.harness.patience import eventually
from tests.harness.prometheus import Prometheus, prometheus_of

DASHBOARDS: Final = [json.loads(path.read_text()) for path in sorted((ROOT / "deploy" / "grafana").glob("*.json"))]
PANELS: Final[list[dict[str, Any]]] = [panel for board in DASHBOARDS for panel in board["panels"]]
EXPRESSIONS: Final[list[str]] = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
EMPTY_WHEN_WELL: Final = ("venture_check_ok == 0", "5..")
"""What these select is there only when something is wrong."""


@pytest.fixture
async def prometheus(stack: Stack, tmp_path: Path) -> AsyncGenerator[Prometheus, None]:
    async with prometheus_of(stack, tmp_path) as one:
        yield one


async def test_every_panel_of_the_dashboard_shows_something_of_a_product_at_work(
    prometheus: Prometheus, environment: Mapping[str, str]
) -> None:
    assert len(EXPRESSIONS) > 10

    async def all_are_answered() -> bool:
        """A rate needs something to grow between two looks."""
        async with signed_up(environment) as person:
            await run_to_its_end(person)
            slip = {"email": person.email, "password": "another one"}
            assert (await person.client.post("/auth/v1/token?grant_type=password", json=slip)).status_code == 400
        await stripe_event(environment)
        found = {expression: await prometheus.query(expression) for expression in EXPRESSIONS}
        return not [it for it, series in found.items() if not series and not any(one in it for one in EMPTY_WHEN_WELL)]

    await eventually(all_are_answered, within_s=60, every_s=1)


async def test_every_alert_is_evaluated_on_what_the_services_expose(prometheus: Prometheus) -> None:
    async def all_are_evaluated() -> bool:
        rules = await prometheus.rules()
        checks = {row["metric"]["check"] for row in await prometheus.query("venture_check_ok")}
        asked = {rule["query"].split('"')[1] for rule in rules if rule["query"].startswith("venture_check_ok")}
        return {rule["health"] for rule in rules} == {"ok"} and len(asked) > 10 and asked <= checks

    await eventually(all_are_evaluated, within_s=20, every_s=0.5)


def test_the_collector_s_pipelines_are_made_of_what_is_declared() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "collector.yaml").read_text())
    pipelines = config["service"]["pipelines"]
    assert pipelines
    for pipeline in pipelines.values():
        for kind in ("receivers", "processors", "exporters"):
            assert pipeline[kind]
            assert set(pipeline[kind]) <= set(config[kind])
    # In the order that the collector's documentation asks for: memory is bounded before anything is gathered.
    assert pipelines["traces"]["processors"] == ["memory_limiter", "batch"]
