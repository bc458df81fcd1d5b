"""A real Prometheus beside a running stack, with the product's own rules; asked as Grafana and Alertmanager do."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import yaml

from ops.engines.packages import ensure_program
from ops.home import ROOT
from ops.stack.stack import Stack
from tests.harness.patience import eventually
from tests.harness.stripe_emulator import free_port

FOLDER: Final = ROOT / "deploy" / "prometheus"


class Prometheus:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The series it answers with; fails with Prometheus' own words if it does not understand."""
        answer = (await self._client.get("/api/v1/query", params={"query": expression})).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        return answer["data"]["result"]

    async def firing(self) -> dict[str, list[dict[str, str]]]:
        """The labels of each alert that fires, by its name."""
        found: dict[str, list[dict[str, str]]] = {}
        for alert in (await self._get("alerts"))["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    async def rules(self) -> list[dict[str, Any]]:
        return [rule for group in (await self._get("rules"))["groups"] for rule in group["rules"]]

    async def _get(self, what: str) -> dict[str, Any]:
        return (await self._client.get(f"/api/v1/{what}")).raise_for_status().json()["data"]


@asynccontextmanager
async def prometheus_of(stack: Stack, folder: Path) -> AsyncGenerator[Prometheus, None]:
    """Looks every second, and no alert waits before it fires: that they wait `promtool` shows, which has the time."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        ensure_program("prometheus", package="prometheus"),
        f"--config.file={_configured(stack, folder)}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    )  # fmt: skip
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:

            async def is_ready() -> bool:
                assert process.returncode is None, "Prometheus has ended"
                try:
                    return (await client.get("/-/ready")).is_success
                except httpx.TransportError:
                    return False

            await eventually(is_ready, within_s=20)
            prometheus = Prometheus(client)

            async def has_looked() -> bool:
                """What grew before the first look has never grown, to Prometheus."""
                return bool(await prometheus.query("up")) and not await prometheus.query("up == 0")

            await eventually(has_looked, within_s=20)
            yield prometheus
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def _configured(stack: Stack, folder: Path) -> Path:
    """The product's configuration, but for where the replicas are and how often they are looked at."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    urls = stack.operator_environment()["METRICS_URLS"].split(",")
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [urlsplit(url).netloc for url in urls]}]
    for name in config["rule_files"]:
        rules: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            del rule["for"]
        (folder / name).write_text(yaml.safe_dump(rules))
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
