"""HTTP of the export: hold one, gather from every service, hand it out, count it."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import structlog
from fastapi import APIRouter, Response

from libs.common.database import Database
from libs.common.errors import Unavailable
from libs.common.ids import new_id
from services.gateway.accounts import queries as accounts
from services.gateway.api_keys import queries as api_keys
from services.gateway.domain import Identity
from services.gateway.exports import operations, queries
from services.gateway.exports.domain import Format, as_json, as_zip
from services.gateway.quotas import Quotas
from services.gateway.sessions import CurrentIdentity
from services.gateway.upstreams import Name, Upstream, UpstreamUnavailable

log = structlog.get_logger(__name__)

METRIC: Final = "exports"
SLOW_S: Final = 20.0
"""Gathering is the one thing that may take longer than an answer usually does."""
MAX_PAGES: Final = 200

# Section: whose it is, and where. A list is followed to its last page.
_OBJECTS: Final[Mapping[str, tuple[Name, str]]] = {
    "usage": ("metering", "/internal/usage"),
    "vibe_config": ("agents", "/internal/vibe-config"),
    "subscription": ("billing", "/internal/subscription"),
}
_LISTS: Final[Mapping[str, tuple[Name, str]]] = {
    "runs": ("agents", "/internal/runs/export?format=json"),
    "templates": ("agents", "/internal/templates?limit=100"),
    "webhook_endpoints": ("agents", "/internal/webhook-endpoints"),
    "background_events": ("agents", "/internal/background-events?limit=100"),
    "invoices": ("billing", "/internal/invoices?limit=100"),
}


class ExportRoutes:
    def __init__(self, *, database: Database, upstreams: Mapping[Name, Upstream], quotas: Quotas) -> None:
        self._database = database
        self._upstreams = upstreams
        self._quotas = quotas

    def router(self) -> APIRouter:
        router = APIRouter(tags=["account"])
        router.add_api_route("/v1/export", self.export, methods=["GET"], response_model=None)
        return router

    async def export(self, identity: CurrentIdentity, format: Format = "json") -> Response:  # noqa: A002 - its public name
        """Everything the product holds about you: JSON, or a ZIP of CSV files. Counts as one export of the plan.

        Whole or not at all: while a service is away the answer is 503, and nothing is counted.
        """
        hold_id = new_id()
        refusal = await self._quotas.hold(identity, hold_id, {METRIC: 1})
        if refusal is not None:
            return refusal
        try:
            sections = await self._gather(identity)
        except BaseException:
            await self._quotas.release(identity, hold_id)
            raise
        packed = as_zip(sections) if format == "csv" else as_json(sections)
        async with self._database.transaction() as conn:
            await operations.record_use(conn, user_id=identity.user_id, hold_id=hold_id, amounts={METRIC: 1})
        kind, name = ("application/zip", "zip") if format == "csv" else ("application/json", "json")
        headers = {"Content-Disposition": f'attachment; filename="venture-companion-export.{name}"'}
        return Response(packed, headers=headers, media_type=kind)

    async def _gather(self, identity: Identity) -> dict[str, Any]:
        asked = {
            **{name: self._object(identity, *at) for name, at in _OBJECTS.items()},
            **{name: self._list(identity, *at) for name, at in _LISTS.items()},
        }
        told = await asyncio.gather(*asked.values())
        return {**await self._own(identity), **dict(zip(asked, told, strict=True))}

    async def _own(self, identity: Identity) -> dict[str, Any]:
        user_id = identity.user_id
        async with self._database.transaction() as conn:
            return {
                "account": await queries.find_account(conn, user_id),
                "profile": await accounts.find_profile(conn, user_id),
                "sessions": await queries.list_sessions(conn, user_id),
                "factors": await queries.list_factors(conn, user_id),
                "api_keys": await api_keys.list_keys(conn, user_id),
                "events": await queries.list_events(conn, user_id),
            }

    async def _object(self, identity: Identity, service: Name, path: str) -> Any:
        """None where that part of the product is switched off. Raises Unavailable for anything that failed."""
        response = await self._upstreams[service].call("GET", path, identity=identity, timeout_s=SLOW_S)
        if response.is_success:
            return response.json()
        if response.status_code == 503 and response.json().get("code") == "billing.disabled":  # noqa: PLR2004
            return None
        log.warning("export_incomplete", upstream=service, path=path.partition("?")[0], status=response.status_code)
        raise UpstreamUnavailable(f"The {service} service did not tell what it holds.", retry_after_s=5)

    async def _list(self, identity: Identity, service: Name, path: str) -> list[Any] | None:
        items: list[Any] = []
        cursor = ""
        for _ in range(MAX_PAGES):
            mark = "&" if "?" in path else "?"
            page = await self._object(identity, service, f"{path}{mark}cursor={cursor}" if cursor else path)
            if page is None:
                return None
            items += page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                return items
        raise Unavailable(f"There is more than {MAX_PAGES} pages of this to export; ask for support.")
