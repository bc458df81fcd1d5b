"""Routes that are another service's: one table of what is passed, to whom, and what the caller must show first."""

from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import httpx
from fastapi import APIRouter, Request, Response

from libs.common.database import Database
from services.gateway.domain import Identity
from services.gateway.idempotency import operations as keys
from services.gateway.idempotency import queries as key_queries
from services.gateway.sessions import CurrentIdentity, require_live_session
from services.gateway.upstreams import Upstream, pass_back

Name = Literal["billing", "metering", "agents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """One public route and the internal one behind it. `is_guarded`: the session must still be alive (money)."""

    method: str
    path: str
    to: Name
    internal: str
    is_guarded: bool = False


PASSED: Final = (
    Passed(method="GET", path="/v1/usage", to="metering", internal="/internal/usage"),
    Passed(method="GET", path="/v1/limits/check", to="metering", internal="/internal/limits/check"),
    Passed(method="GET", path="/v1/runs", to="agents", internal="/internal/runs"),
    Passed(method="GET", path="/v1/runs/export", to="agents", internal="/internal/runs/export"),
    Passed(method="POST", path="/v1/runs/{row_id}/cancel", to="agents", internal="/internal/runs/{row_id}/cancel"),
    Passed(method="GET", path="/v1/runs/{row_id}/feedback", to="agents", internal="/internal/runs/{row_id}/feedback"),
    Passed(method="POST", path="/v1/runs/{row_id}/feedback", to="agents", internal="/internal/runs/{row_id}/feedback"),
    Passed(method="PUT", path="/v1/runs/{row_id}/bookmark", to="agents", internal="/internal/runs/{row_id}/bookmark"),
    Passed(method="POST", path="/v1/runs/{row_id}/approval", to="agents", internal="/internal/runs/{row_id}/approval"),
    Passed(method="GET", path="/v1/vibe-config", to="agents", internal="/internal/vibe-config"),
    Passed(method="PUT", path="/v1/vibe-config", to="agents", internal="/internal/vibe-config"),
    Passed(method="GET", path="/v1/templates", to="agents", internal="/internal/templates"),
    Passed(method="POST", path="/v1/templates", to="agents", internal="/internal/templates"),
    Passed(method="PUT", path="/v1/templates/{row_id}", to="agents", internal="/internal/templates/{row_id}"),
    Passed(method="DELETE", path="/v1/templates/{row_id}", to="agents", internal="/internal/templates/{row_id}"),
    Passed(method="GET", path="/v1/templates/presets", to="agents", internal="/internal/templates/presets"),
    Passed(method="GET", path="/v1/templates/{row_id}", to="agents", internal="/internal/templates/{row_id}"),
    Passed(
        method="GET",
        path="/v1/templates/{row_id}/versions",
        to="agents",
        internal="/internal/templates/{row_id}/versions",
    ),
    Passed(
        method="POST",
        path="/v1/templates/{row_id}/restore",
        to="agents",
        internal="/internal/templates/{row_id}/restore",
    ),
    Passed(
        method="POST", path="/v1/templates/{row_id}/share", to="agents", internal="/internal/templates/{row_id}/share"
    ),
    Passed(
        method="DELETE", path="/v1/templates/{row_id}/share", to="agents", internal="/internal/templates/{row_id}/share"
    ),
    Passed(
        method="GET", path="/v1/shared-templates/{row_id}", to="agents", internal="/internal/shared-templates/{row_id}"
    ),
    Passed(method="GET", path="/v1/prompt-atoms", to="agents", internal="/internal/prompt-atoms"),
    Passed(
        method="GET",
        path="/v1/admin/prompt-atoms",
        to="agents",
        internal="/internal/admin/prompt-atoms",
        is_guarded=True,
    ),
    Passed(
        method="PUT",
        path="/v1/admin/prompt-atoms",
        to="agents",
        internal="/internal/admin/prompt-atoms",
        is_guarded=True,
    ),
    Passed(method="POST", path="/v1/prompts/preview", to="agents", internal="/internal/prompts/preview"),
    Passed(method="GET", path="/v1/webhook-endpoints", to="agents", internal="/internal/webhook-endpoints"),
    Passed(method="POST", path="/v1/webhook-endpoints", to="agents", internal="/internal/webhook-endpoints"),
    Passed(
        method="POST",
        path="/v1/webhook-endpoints/{row_id}/rotate",
        to="agents",
        internal="/internal/webhook-endpoints/{row_id}/rotate",
    ),
    Passed(
        method="DELETE",
        path="/v1/webhook-endpoints/{row_id}",
        to="agents",
        internal="/internal/webhook-endpoints/{row_id}",
    ),
    Passed(method="GET", path="/v1/background-events", to="agents", internal="/internal/background-events"),
    Passed(method="POST", path="/v1/billing/checkout", to="billing", internal="/internal/checkout", is_guarded=True),
    Passed(method="POST", path="/v1/billing/portal", to="billing", internal="/internal/portal", is_guarded=True),
    Passed(method="GET", path="/v1/billing/subscription", to="billing", internal="/internal/subscription"),
    Passed(method="GET", path="/v1/billing/invoices", to="billing", internal="/internal/invoices"),
)

# What a sender signs with or names a delivery by; nothing else of its headers travels on.
_WEBHOOK_HEADERS: Final = (
    "content-type",
    "stripe-signature",
    "x-hub-signature-256",
    "x-github-event",
    "x-github-delivery",
    "x-gitlab-token",
    "x-gitlab-event",
    "x-gitlab-event-uuid",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "idempotency-key",
    "x-signature-256",
    "x-timestamp",
    "x-delivery-id",
    "x-event-kind",
)


class PassedRoutes:
    def __init__(self, *, database: Database, upstreams: dict[Name, Upstream]) -> None:
        self._database = database
        self._upstreams = upstreams

    def router(self) -> APIRouter:
        router = APIRouter()
        for passed in PASSED:
            endpoint = self._with_row_id(passed) if "{row_id}" in passed.path else self._plain(passed)
            router.add_api_route(passed.path, endpoint, methods=[passed.method], tags=[passed.to], response_model=None)
        router.add_api_route("/v1/billing/plans", self.plans, methods=["GET"], tags=["billing"], response_model=None)
        router.add_api_route("/billing/webhook", self.stripe_webhook, methods=["POST"], response_model=None)
        router.add_api_route("/webhooks/{kind}/{endpoint_id}", self.webhook, methods=["POST"], response_model=None)
        return router

    def _plain(self, passed: Passed) -> Any:
        async def endpoint(request: Request, identity: CurrentIdentity) -> Response:
            if passed.is_guarded:
                await require_live_session(self._database, identity)
            key = request.headers.get("idempotency-key")
            if key is not None and passed.method == "POST":
                return await self._once(passed, request, identity, key)
            return pass_back(await self._call(passed, request, identity, {}))

        return endpoint

    async def _once(self, passed: Passed, request: Request, identity: Identity, key: str) -> Response:
        """The first request's answer for every request with its key. An answer that invites another try is not kept.

        The claim's id travels along as the service's own key: it stays the same when a claim is taken over.
        """
        keys.check_key(key)
        request_hash = keys.hash_request("POST", passed.path, await request.body())
        async with self._database.transaction() as conn:
            claim = await keys.claim_key(conn, user_id=identity.user_id, key=key, request_hash=request_hash)
        if claim.replay is not None:
            return Response(claim.replay, claim.replay_status, claim.replay_headers)
        is_kept = False
        try:
            response = await self._call(passed, request, identity, {"Idempotency-Key": str(claim.resource_id)})
            is_kept = response.is_success
            answer = pass_back(response)
        finally:
            if not is_kept:
                async with self._database.transaction() as conn:
                    await key_queries.give_back_key(conn, user_id=identity.user_id, key=key)
        if is_kept:
            async with self._database.transaction() as conn:
                await key_queries.store_response(
                    conn,
                    user_id=identity.user_id,
                    key=key,
                    status=response.status_code,
                    body=response.content,
                    headers={n: v for n, v in answer.headers.items() if n in {"content-type", "location"}},
                )
        return answer

    async def _call(
        self, passed: Passed, request: Request, identity: Identity, headers: dict[str, str]
    ) -> httpx.Response:
        return await self._upstreams[passed.to].call(
            passed.method,
            passed.internal,
            identity=identity,
            params=request.query_params.multi_items(),
            content=await request.body() or None,
            headers={**_content_type(request), **headers},
        )

    def _with_row_id(self, passed: Passed) -> Any:
        async def endpoint(row_id: UUID, request: Request, identity: CurrentIdentity) -> Response:
            response = await self._upstreams[passed.to].call(
                passed.method,
                passed.internal.replace("{row_id}", str(row_id)),
                identity=identity,
                content=await request.body() or None,
                headers=_content_type(request),
            )
            return pass_back(response)

        return endpoint

    async def plans(self) -> Response:
        return pass_back(await self._upstreams["billing"].call("GET", "/internal/plans"))

    async def stripe_webhook(self, request: Request) -> Response:
        """Stripe's bytes as they came: billing checks the signature over exactly these."""
        response = await self._upstreams["billing"].call(
            "POST", "/webhooks/stripe", content=await request.body(), headers=_webhook_headers(request)
        )
        return pass_back(response)

    async def webhook(
        self, kind: Literal["github", "gitlab", "generic"], endpoint_id: UUID, request: Request
    ) -> Response:
        response = await self._upstreams["agents"].call(
            "POST",
            f"/internal/webhooks/{kind}/{endpoint_id}",
            content=await request.body(),
            headers=_webhook_headers(request),
        )
        return pass_back(response)


def _content_type(request: Request) -> dict[str, str]:
    value = request.headers.get("content-type")
    return {"content-type": value} if value else {}


def _webhook_headers(request: Request) -> dict[str, str]:
    return {name: request.headers[name] for name in _WEBHOOK_HEADERS if name in request.headers}
