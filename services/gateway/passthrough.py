"""Routes that are another service's: one table of what is passed, to whom, and what the caller must show first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response

from libs.common.database import Connection
from libs.common.errors import Unavailable
from libs.common.http_client import Answer
from services.gateway.domain import Identity, SignInRequired
from services.gateway.exports.operations import record_use
from services.gateway.idempotency.state import Answers, Made
from services.gateway.metered import METERED
from services.gateway.quotas import Quotas
from services.gateway.sessions import CurrentIdentity, require_live_session
from services.gateway.upstreams import Name, Upstream, pass_back


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """One public route and the internal one behind it.

    `is_guarded`: the session must still be alive (money). `uses`: one of this metric is held, and used by success.
    """

    method: str
    path: str
    to: Name
    internal: str
    is_guarded: bool = False
    uses: str = ""


PASSED: Final = (
    Passed(method="GET", path="/v1/usage", to="metering", internal="/internal/usage"),
    Passed(method="GET", path="/v1/usage/holds", to="metering", internal="/internal/usage/holds"),
    Passed(method="GET", path="/v1/usage/history", to="metering", internal="/internal/usage/history"),
    Passed(method="GET", path="/v1/entitlements", to="metering", internal="/internal/entitlements"),
    Passed(method="GET", path="/v1/limits/check", to="metering", internal="/internal/limits/check"),
    Passed(method="GET", path="/v1/runs", to="agents", internal="/internal/runs"),
    Passed(method="GET", path="/v1/runs/export", to="agents", internal="/internal/runs/export", uses="exports"),
    Passed(method="POST", path="/v1/runs/{row_id}/cancel", to="agents", internal="/internal/runs/{row_id}/cancel"),
    Passed(method="GET", path="/v1/runs/{row_id}/feedback", to="agents", internal="/internal/runs/{row_id}/feedback"),
    Passed(method="POST", path="/v1/runs/{row_id}/feedback", to="agents", internal="/internal/runs/{row_id}/feedback"),
    Passed(method="PUT", path="/v1/runs/{row_id}/bookmark", to="agents", internal="/internal/runs/{row_id}/bookmark"),
    Passed(method="POST", path="/v1/runs/{row_id}/approval", to="agents", internal="/internal/runs/{row_id}/approval"),
    Passed(method="GET", path="/v1/vibe-config", to="agents", internal="/internal/vibe-config"),
    Passed(method="PUT", path="/v1/vibe-config", to="agents", internal="/internal/vibe-config"),
    Passed(method="GET", path="/v1/templates", to="agents", internal="/internal/templates"),
    Passed(method="POST", path="/v1/templates", to="agents", internal="/internal/templates", uses="templates"),
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
    def __init__(self, *, upstreams: Mapping[Name, Upstream], quotas: Quotas, answers: Answers) -> None:
        self._upstreams = upstreams
        self._quotas = quotas
        self._answers = answers

    def router(self) -> APIRouter:
        router = APIRouter()
        for passed in PASSED:
            endpoint = self._with_row_id(passed) if "{row_id}" in passed.path else self._plain(passed)
            router.add_api_route(passed.path, endpoint, methods=[passed.method], tags=[passed.to], response_model=None)
        router.add_api_route(
            "/v1/usage/events", self.usage_events, methods=["POST"], tags=["metering"], response_model=None
        )
        router.add_api_route("/v1/billing/plans", self.plans, methods=["GET"], tags=["billing"], response_model=None)
        router.add_api_route("/billing/webhook", self.stripe_webhook, methods=["POST"], response_model=None)
        router.add_api_route("/webhooks/{kind}/{endpoint_id}", self.webhook, methods=["POST"], response_model=None)
        return router

    def _plain(self, passed: Passed) -> Any:
        async def endpoint(request: Request, identity: CurrentIdentity) -> Response:
            return await self._pass(passed, passed.internal, request, identity)

        return endpoint

    def _with_row_id(self, passed: Passed) -> Any:
        async def endpoint(row_id: UUID, request: Request, identity: CurrentIdentity) -> Response:
            return await self._pass(passed, passed.internal.replace("{row_id}", str(row_id)), request, identity)

        return endpoint

    async def _pass(self, passed: Passed, path: str, request: Request, identity: Identity) -> Response:
        """Pass on, once per Idempotency-Key.

        The claim's id travels along as the service's own key and names the hold: both stay the same when a claim is
        taken over.
        """
        if passed.is_guarded:
            await require_live_session(request, identity)

        async def work(resource_id: UUID) -> Made:
            if passed.uses:
                return await self._use(passed, path, request, identity, resource_id=resource_id)
            return Made(response=pass_back(await self._call(passed, path, request, identity, resource_id=resource_id)))

        if passed.method == "POST":
            return await self._answers.give(request, identity, work)
        return await self._answers.without_key(work)

    async def _use(self, passed: Passed, path: str, request: Request, identity: Identity, *, resource_id: UUID) -> Made:
        """Pass on under a hold, which becomes use with success and is given back with anything else."""
        amounts = {passed.uses: 1}
        features = METERED[f"{passed.method} {passed.path}"].features
        refusal = await self._quotas.hold(identity, resource_id, amounts, features=features)
        if refusal is not None:
            return Made(response=refusal)
        try:
            response = await self._call(passed, path, request, identity, resource_id=resource_id)
        except Unavailable:
            await self._quotas.release(identity, resource_id)
            raise
        if not response.is_success:
            await self._quotas.release(identity, resource_id)
            return Made(response=pass_back(response))

        async def record(conn: Connection) -> None:
            await record_use(conn, user_id=identity.user_id, hold_id=resource_id, amounts=amounts)

        return Made(response=pass_back(response), record=record)

    async def _call(
        self, passed: Passed, path: str, request: Request, identity: Identity, *, resource_id: UUID
    ) -> Answer:
        key = {"Idempotency-Key": str(resource_id)} if passed.method == "POST" else {}
        return await self._upstreams[passed.to].call(
            passed.method,
            path,
            identity=identity,
            params=request.query_params.multi_items(),
            content=await request.body() or None,
            headers={**_content_type(request), **key},
        )

    async def usage_events(self, request: Request) -> Response:
        """Usage of other programs, as CloudEvents: with an API key for its owner, with the service role for anybody."""
        is_service = getattr(request.state, "is_service_role", False)
        identity = getattr(request.state, "identity", None)
        if not is_service and not isinstance(identity, Identity):
            raise SignInRequired("Send an API key, or the service role's key, as a bearer token.")
        response = await self._upstreams["metering"].call(
            "POST",
            "/internal/usage/events",
            identity=None if is_service else identity,
            role="service_role" if is_service else None,
            content=await request.body() or None,
            headers=_content_type(request),
        )
        return pass_back(response)

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
