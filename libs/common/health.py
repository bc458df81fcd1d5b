"""Health: `/health` for load balancers and people, `/health/live` for supervisors, `/health/ready` for the truth.

Ready names every dependency and business invariant with its value, its threshold and the runbook section that mends it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fastapi import APIRouter, Response

from libs.common.clock import Clock, iso_millis

CHECK_TIMEOUT_S: Final = 3.0

Status = Literal["ok", "failed", "disabled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check saw. `value` and `threshold` are for people: a number with its unit in the check's name."""

    status: Status
    value: Any = None
    threshold: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must hold. `runbook` is the anchor of the section in docs/RUNBOOK.md."""

    name: str
    probe: Callable[[], Awaitable[Finding]]
    runbook: str


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
    return {
        "name": check.name,
        "status": finding.status,
        "value": finding.value,
        "threshold": finding.threshold,
        "runbook": check.runbook,
    }


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
        """Every dependency and invariant; 503 when one fails. `disabled` is a choice, not a failure."""
        findings = await run_checks(checks)
        failed = [finding["name"] for finding in findings if finding["status"] == "failed"]
        if failed:
            response.status_code = 503
            response.headers["Retry-After"] = "5"
        return {"status": "failed" if failed else "ok", "failed": failed, "checks": findings}

    return router
