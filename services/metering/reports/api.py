"""HTTP of reports: a user's usage, history and entitlements, as the user; lists of users for operators."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from libs.common.clock import iso_millis
from libs.common.database import Connection, Database
from libs.common.http import CurrentCaller
from libs.common.plans import Plans
from services.metering import queries
from services.metering.accounts import domain as account_rules
from services.metering.accounts import queries as accounts
from services.metering.accounts.domain import Account
from services.metering.domain import MAX_AMOUNT, UnknownMetric, Usage, remaining
from services.metering.grants import queries as grants
from services.metering.grants.operations import visible_credits
from services.metering.reports import domain
from services.metering.reports import queries as reports
from services.metering.reports.domain import Grain


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """Usage and limit (None: unlimited; grants on top) of every metric in the current period."""

    account: Account
    metrics: Mapping[str, tuple[Usage, int | None]]


class ReportRoutes:
    def __init__(self, database: Database, plans: Plans) -> None:
        self._database = database
        self._plans = plans

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal")
        router.add_api_route("/usage", self.get_usage, methods=["GET"])
        router.add_api_route("/usage/holds", self.list_holds, methods=["GET"])
        router.add_api_route("/usage/history", self.get_history, methods=["GET"])
        router.add_api_route("/limits/check", self.check_limit, methods=["GET"])
        router.add_api_route("/entitlements", self.get_entitlements, methods=["GET"])
        return router

    async def get_usage(self, caller: CurrentCaller) -> dict[str, Any]:
        user_id = str(caller.require_user())
        async with self._database.transaction_as(caller.claims) as conn:
            standing = await self._standing(conn, user_id)
            period = standing.account.period
            cost = await reports.get_cost(conn, user_id=user_id, period_start=period.start)
        resets_at = iso_millis(period.end)
        return {
            "period": {"start": iso_millis(period.start), "end": resets_at},
            "tier": standing.account.tier,
            "metrics": {
                metric: {
                    "used": usage.used,
                    "held": usage.held,
                    "limit": limit,
                    "remaining": remaining(usage, limit),
                    "resets_at": resets_at,
                }
                for metric, (usage, limit) in standing.metrics.items()
            },
            "cost_micro_usd": cost,
        }

    async def list_holds(self, caller: CurrentCaller) -> dict[str, Any]:
        """What is set aside at this moment, and for which run: why less remains than was not used."""
        user_id = str(caller.require_user())
        async with self._database.transaction() as conn:
            holds = await reports.find_open_holds(conn, user_id=user_id)
        return {
            "items": [
                {
                    "run_id": str(row["id"]),
                    "amounts": row["amounts"],
                    "is_confirmed": row["is_confirmed"],
                    "created_at": iso_millis(row["created_at"]),
                    "expires_at": iso_millis(row["expires_at"]),
                }
                for row in holds
            ]
        }

    async def check_limit(
        self, caller: CurrentCaller, metric: str, amount: Annotated[int, Query(ge=1, le=MAX_AMOUNT)] = 1
    ) -> dict[str, Any]:
        """A forecast for clients to show; what decides is the hold."""
        if metric not in self._plans.meters:
            raise UnknownMetric(f"{metric[:80]} is no metric.")
        user_id = str(caller.require_user())
        async with self._database.transaction_as(caller.claims) as conn:
            standing = await self._standing(conn, user_id)
        usage, limit = standing.metrics.get(metric, (Usage(), None))
        left = remaining(usage, limit)
        return {
            "allowed": left is None or amount <= left,
            "current": usage.used + usage.held,
            "limit": limit,
            "remaining": left,
        }

    async def get_history(
        self,
        caller: CurrentCaller,
        granularity: Grain = "day",
        metric: str | None = None,
        group_by: Annotated[str | None, Query(max_length=63)] = None,
        *,
        since: Annotated[AwareDatetime | None, Query(alias="from")] = None,
        until: Annotated[AwareDatetime | None, Query(alias="to")] = None,
    ) -> dict[str, Any]:
        """Usage by hour, day or month, in UTC, without gaps; of all the product's metrics unless one is named."""
        metrics = [metric] if metric is not None else sorted(self._product_metrics())
        if not self._plans.meters.keys() >= set(metrics):
            raise UnknownMetric(f"{(metric or '')[:80]} is no metric.")
        domain.check_group(self._plans, metrics, group_by)
        user_id = str(caller.require_user())
        async with self._database.transaction_as(caller.claims) as conn:
            now = await accounts.get_now(conn)
            starts = domain.buckets(granularity, since=since, until=until, now=now)
            slices = await reports.find_slices(
                conn,
                user_id=user_id,
                metrics=metrics,
                grain=granularity,
                group_by=group_by,
                since=starts[0],
                until=until or now,
            )
        found = domain.series(self._plans, metrics, starts, slices)
        return {
            "granularity": granularity,
            "from": iso_millis(starts[0]),
            "to": iso_millis(until or now),
            "group_by": group_by,
            "series": [
                {
                    "metric": name,
                    "group": group,
                    "points": [
                        {"start": iso_millis(p.start), "used": p.used, "cost_micro_usd": p.cost_micro_usd}
                        for p in points
                    ],
                }
                for (name, group), points in found.items()
            ],
        }

    async def get_entitlements(self, caller: CurrentCaller) -> dict[str, Any]:
        user_id = str(caller.require_user())
        async with self._database.transaction_as(caller.claims) as conn:
            account = await accounts.get_account(conn, self._plans, user_id)
            granted = await grants.find_grants(conn, user_id)
        limits = account_rules.limits_of(self._plans, account)
        return {
            "tier": account.tier,
            "status": account.status,
            "features": account_rules.features_of(self._plans, account),
            "limits": {name: limits.get(name) for name in sorted(self._product_metrics() | limits.keys())},
            "thresholds": account_rules.thresholds_of(self._plans, account),
            "grants": [grant_view(dict(row)) for row in granted],
        }

    def _product_metrics(self) -> set[str]:
        return {metric for tier in self._plans.tiers.values() for metric in tier.limits}

    async def _standing(self, conn: Connection, user_id: str) -> _Standing:
        account = await accounts.get_account(conn, self._plans, user_id)
        usage = await queries.find_usage(conn, user_id=user_id, period=account.period)
        limits = dict[str, int | None](account_rules.limits_of(self._plans, account))
        if account.has_grants:
            credit = await visible_credits(
                conn, user_id=user_id, limits=account_rules.limits_of(self._plans, account), period=account.period
            )
            for metric, extra in credit.items():
                limit = limits[metric]
                if limit is not None:
                    limits[metric] = extra.ceiling(limit=limit, used=usage.get(metric, Usage()).used)
        names = self._product_metrics() | usage.keys() | limits.keys()
        return _Standing(
            account=account,
            metrics={name: (usage.get(name, Usage()), limits.get(name)) for name in sorted(names)},
        )


def grant_view(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": str(row["id"]),
        "metric": row["metric_type"],
        "amount": row["amount"],
        "used": row["used_amount"],
        "left": 0 if row["voided_at"] else row["amount"] - row["used_amount"],
        "priority": row["priority"],
        "starts_at": iso_millis(row["starts_at"]),
        "expires_at": _time(row["expires_at"]),
        "reason": row["reason"],
        "voided_at": _time(row["voided_at"]),
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else iso_millis(at)
