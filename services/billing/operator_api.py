"""HTTP in for operators: events again, the comparison with Stripe, usage that was refused, whose a customer is."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, Field

from libs.common.clock import iso_millis
from libs.common.database import Database, Record
from libs.common.errors import Forbidden, NotFound
from libs.common.http import CurrentCaller
from libs.common.ids import new_id
from libs.common.inputs import Input
from libs.common.service_tokens import Caller
from services.billing import drift_queries, operations, queries, usage_queries, work_queries
from services.billing.domain import BillingDisabled, Rules
from services.billing.paging import cursor_after, read_cursor
from services.billing.work_queries import EventFilter


class NotAnAdmin(Forbidden):
    code = "billing.not_an_admin"


class NoSuchRun(NotFound):
    code = "billing.no_such_reconciliation"


class NoSuchEvent(NotFound):
    code = "billing.no_such_event"


class ReconcileInput(Input):
    fix: bool = False


class ReplayInput(Input):
    """All that is given must match; nothing given means every event still stored."""

    event_id: str | None = Field(default=None, max_length=255)
    type: str | None = Field(default=None, max_length=255)
    object_id: str | None = Field(default=None, max_length=255)
    customer_id: str | None = Field(default=None, max_length=255)
    received_since: AwareDatetime | None = None
    received_until: AwareDatetime | None = None
    unhandled: bool = False


class EventsQuery(ReplayInput):
    """The same filter, page by page."""

    cursor: str | None = Field(default=None, max_length=500)
    limit: int = Field(default=50, ge=1, le=200)


class ResendInput(Input):
    """Which refused usage to report again, once what Stripe refused it for is mended; nothing given means all."""

    meter: str | None = Field(default=None, max_length=100)
    customer_id: str | None = Field(default=None, max_length=255)


class LinkInput(Input):
    user_id: UUID
    stripe_customer_id: str = Field(pattern=r"^cus_[A-Za-z0-9_]{1,250}$")


class OperatorRoutes:
    """Everything here is for admins, or for a service acting for itself. `wake` rouses the jobs that do the work."""

    def __init__(self, database: Database, rules: Rules, *, wake: Callable[[], None] | None) -> None:
        self._database = database
        self._rules = rules
        self._wake = wake

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal/admin", tags=["operators"])
        for path, endpoint, method, status in self._table():
            router.add_api_route(path, endpoint, methods=[method], status_code=status)
        return router

    def _table(self) -> list[tuple[str, Callable[..., Awaitable[Any]], str, int]]:
        return [
            ("/reconcile", self.reconcile, "POST", 202),
            ("/reconcile", self.get_reconciliation, "GET", 200),
            ("/webhook-events", self.list_events, "GET", 200),
            ("/webhook-events/replay", self.replay, "POST", 202),
            ("/webhook-events/{event_id}", self.get_event, "GET", 200),
            ("/usage-reports", self.list_usage_reports, "GET", 200),
            ("/usage-reports/resend", self.resend_usage, "POST", 202),
            ("/customers/link", self.link, "POST", 202),
        ]

    async def reconcile(self, caller: CurrentCaller, body: ReconcileInput) -> Mapping[str, str]:
        """Ask for a comparison; a worker begins it within seconds."""
        wake = await self._admit(caller)
        run_id = new_id()
        async with self._database.transaction() as conn:
            await operations.request_reconciliation(conn, run_id=run_id, is_fixing=body.fix)
        wake()
        return {"id": str(run_id)}

    async def get_reconciliation(
        self,
        caller: CurrentCaller,
        run_id: Annotated[UUID | None, Query(alias="id")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Mapping[str, Any]:
        """The run, or the newest, and the drift as last seen: what, ours, theirs, since when."""
        await self._admit(caller)
        async with self._database.transaction() as conn:
            run = await drift_queries.find_run(conn, run_id)
            drift = await drift_queries.find_drift(conn, limit=limit)
            total = await drift_queries.count_drift(conn)
        if run is None and run_id is not None:
            raise NoSuchRun("There is no such reconciliation.")
        return {
            "run": _rendered(run) if run is not None else None,
            "total": total,
            "drift": [_rendered(row) for row in drift],
        }

    async def list_events(self, caller: CurrentCaller, query: Annotated[EventsQuery, Query()]) -> Mapping[str, Any]:
        """Newest first, with what keeps the unhandled ones."""
        await self._admit(caller)
        before = read_cursor(query.cursor)
        async with self._database.transaction() as conn:
            rows = await work_queries.find_events(conn, _filter(query), before=before, limit=query.limit + 1)
        shown = rows[: query.limit]
        more = len(rows) > query.limit
        return {
            "items": [_rendered(row) for row in shown],
            "next_cursor": cursor_after(shown[-1]["received_at"], shown[-1]["id"]) if more else None,
        }

    async def get_event(self, caller: CurrentCaller, event_id: str) -> Mapping[str, Any]:
        """One event with what was kept of its payload, and what still is to be done about its object."""
        await self._admit(caller)
        async with self._database.transaction() as conn:
            row = await work_queries.find_event(conn, event_id)
        if row is None:
            raise NoSuchEvent("There is no such event.")
        return _rendered(row)

    async def replay(self, caller: CurrentCaller, body: ReplayInput) -> Mapping[str, int]:
        """Fetch again what matching events were about; handled ones, too. Returns how many objects that is."""
        wake = await self._admit(caller)
        async with self._database.transaction() as conn:
            count = await work_queries.request_replay(conn, _filter(body))
        wake()
        return {"objects": count}

    async def list_usage_reports(
        self,
        caller: CurrentCaller,
        state: Annotated[Literal["waiting", "sent", "refused"] | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Mapping[str, Any]:
        await self._admit(caller)
        async with self._database.transaction() as conn:
            rows = await usage_queries.find_reports(conn, state=state, limit=limit)
        return {"items": [_rendered(row) for row in rows], "next_cursor": None}

    async def resend_usage(self, caller: CurrentCaller, body: ResendInput) -> Mapping[str, int]:
        await self._admit(caller)
        async with self._database.transaction() as conn:
            count = await usage_queries.resend_refused(conn, meter=body.meter, stripe_customer_id=body.customer_id)
        return {"reports": count}

    async def link(self, caller: CurrentCaller, body: LinkInput) -> Mapping[str, str]:
        wake = await self._admit(caller)
        async with self._database.transaction() as conn:
            await operations.relink_customer(
                conn, user_id=body.user_id, stripe_customer_id=body.stripe_customer_id, rules=self._rules
            )
        wake()
        return {"user_id": str(body.user_id), "stripe_customer_id": body.stripe_customer_id}

    async def _admit(self, caller: Caller) -> Callable[[], None]:
        """Raises NotAnAdmin, BillingDisabled. A token without a user is a service's own, and those are ours."""
        if caller.user_id is not None:
            async with self._database.transaction_as(caller.claims) as conn:
                if not await queries.is_admin(conn):
                    raise NotAnAdmin("This is for admins.")
        if self._wake is None:
            raise BillingDisabled("Billing is switched off.", retry_after_s=3600)
        return self._wake


def _filter(given: ReplayInput) -> EventFilter:
    return EventFilter(
        event_id=given.event_id,
        type=given.type,
        object_id=given.object_id,
        stripe_customer_id=given.customer_id,
        received_since=given.received_since,
        received_until=given.received_until,
        is_unhandled=given.unhandled,
    )


def _rendered(row: Record) -> dict[str, Any]:
    return {name: iso_millis(value) if isinstance(value, datetime) else value for name, value in dict(row).items()}
