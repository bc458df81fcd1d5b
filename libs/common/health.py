"""Health: `/health` for load balancers and people, `/health/live` for supervisors, `/health/ready` for the truth.

Ready names every dependency and business invariant with its value, its threshold and the runbook section that mends it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fastapi import APIRouter, Response

from libs.common.clock import Clock, iso_millis
from libs.common.telemetry import CHECK_OK, CHECK_VALUE

CHECK_TIMEOUT_S: Final = 3.0
EXPORT_INTERVAL_S: Final = 10.0

Status = Literal["ok", "failed", "warning", "disabled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check saw. `value` and `threshold` are for people: a number with its unit in the check's name."""

    status: Status
    value: Any = None
    threshold: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must hold. `runbook` is the anchor of the section in docs/RUNBOOK.md.

    One that only warns is for people: taking the process out of service would help nobody, or would let any client
    do it, by failing to sign in for example.
    """

    name: str
    probe: Callable[[], Awaitable[Finding]]
    runbook: str
    warns_only: bool = False


def at_most(value: float, threshold: float) -> Finding:
    return Finding(status="ok" if value <= threshold else "failed", value=round(value, 3), threshold=threshold)


async def run_checks(checks: Sequence[Check]) -> list[dict[str, Any]]:
    return list(await asyncio.gather(*(_run(check) for check in checks)))


async def _run(check: Check) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            finding = await check.probe()
    except Exception as error:  # noqa: BLE001 - an edge: a probe that cannot answer is the answer
        finding = Finding(status="failed", value=type(error).__name__)
    status: Status = "warning" if check.warns_only and finding.status == "failed" else finding.status
    return {
        "name": check.name,
        "status": status,
        "value": finding.value,
        "threshold": finding.threshold,
        "runbook": check.runbook,
    }


async def export_checks(checks: Sequence[Check], *, service: str) -> None:
    """For ever: what `/health/ready` would say, as metrics, so that an alert and a person see the same thing."""
    while True:
        await asyncio.sleep(EXPORT_INTERVAL_S)
        for finding in await run_checks(checks):
            CHECK_OK.labels(service, finding["name"]).set(finding["status"] in {"ok", "disabled"})
            if isinstance(finding["value"], int | float):
                CHECK_VALUE.labels(service, finding["name"]).set(finding["value"])


def health_router(*, environment: str, version: str, clock: Clock, checks: Sequence[Check]) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/health")
    async def health() -> dict[str, str]:
        """The shape that load balancers and the runbook know; it says that the process answers, no more."""
        return {"status": "ok", "timestamp": iso_millis(clock()), "environment": environment, "version": version}

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/health/ready")
    async def ready(response: Response) -> dict[str, Any]:
        """Every dependency and invariant; 503 when one fails; `disabled` and `warning` are no failures."""
        findings = await run_checks(checks)
        failed = [finding["name"] for finding in findings if finding["status"] == "failed"]
        if failed:
            response.status_code = 503
            response.headers["Retry-After"] = "5"
        return {"status": "failed" if failed else "ok", "failed": failed, "checks": findings}

    return router
