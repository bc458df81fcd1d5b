"""The business invariants of agents that readiness reports: leases, waiting runs, unanswered proposals."""

from collections.abc import Sequence
from typing import Final

from libs.common.database import Database
from libs.common.health import Check, Finding, at_most
from services.agents.background import queries as background_queries
from services.agents.model_router import ModelRouter
from services.agents.redis_mirror import RedisMirror
from services.agents.runs import lease_queries

MAX_EXPIRED_LEASE_S: Final = 30
MAX_UNSERVED_S: Final = 60
MAX_PROPOSAL_S: Final = 300


class Checks:
    def __init__(self, *, database: Database, mirror: RedisMirror, router: ModelRouter) -> None:
        self._database = database
        self._mirror = mirror
        self._router = router

    def all(self) -> Sequence[Check]:
        return (
            Check(name="expired_lease_oldest_s", probe=self._expired_leases, runbook="runs-stuck"),
            Check(name="waiting_run_unserved_s", probe=self._unserved, runbook="runs-stuck"),
            Check(name="proposal_oldest_unanswered_s", probe=self._proposals, runbook="proposals-unanswered"),
            Check(name="models", probe=self._models, runbook="models-unavailable", warns_only=True),
            Check(name="live_mirror", probe=self._live_mirror, runbook="live-streams-slow"),
        )

    async def _expired_leases(self) -> Finding:
        async with self._database.transaction() as conn:
            return at_most(await lease_queries.oldest_expired_lease_s(conn), MAX_EXPIRED_LEASE_S)

    async def _unserved(self) -> Finding:
        """Runs that wait because their user's cap is reached are as it should be and do not count."""
        async with self._database.transaction() as conn:
            return at_most(await lease_queries.longest_unserved_s(conn), MAX_UNSERVED_S)

    async def _proposals(self) -> Finding:
        async with self._database.transaction() as conn:
            return at_most(await background_queries.oldest_proposal_s(conn), MAX_PROPOSAL_S)

    async def _models(self) -> Finding:
        """A warning only: runs fall back or end as failed and unpaid, and no restart of ours mends a provider."""
        failing = self._router.failing_providers()
        return (
            Finding(status="failed", value=f"failing: {', '.join(failing)}")
            if failing
            else Finding(status="ok", value="up")
        )

    async def _live_mirror(self) -> Finding:
        """Never a failure: without Redis streams are slower, and nothing else."""
        return Finding(status="ok", value="up" if self._mirror.is_up else "away")
