"""The OpenAPI document as it is answered: every refusal in its real shape, and how callers show who they are."""

from typing import Any, Final

from fastapi import FastAPI
from pydantic.json_schema import model_json_schema

from libs.common.http import PROBLEM_JSON, Problem
from services.gateway.metered import METERED

_REFUSALS: Final = {
    "400": ("The request is not well formed.", "bad_request"),
    "401": ("Sign in: there is no valid access token or API key.", "gateway.sign_in_required"),
    "403": ("The account is banned, or the API key's scopes do not reach this.", "gateway.scope_missing"),
    "404": ("There is nothing here, for this caller.", "not_found"),
    "409": ("It is being worked on, or was changed meanwhile.", "gateway.idempotency_key_in_flight"),
    "413": ("The body is larger than 1 MiB.", "body_too_large"),
    "415": ("The body is of a kind not understood here.", "unsupported_media_type"),
    "422": ("A value is not acceptable; `errors` says where and why.", "invalid"),
    "429": ("Too many requests, or a limit of the plan is reached.", "gateway.rate_limited"),
    "503": ("Something is away, or the house is closed for maintenance.", "gateway.upstream_unavailable"),
}
_MAINTENANCE: Final = {
    "type": "object",
    "required": ["error", "retryAfter"],
    "properties": {"error": {"type": "string"}, "retryAfter": {"type": "integer"}},
    "example": {"error": "Service temporarily unavailable for maintenance", "retryAfter": 3600},
}
_METHODS: Final = frozenset({"get", "put", "post", "patch", "delete"})
_OPEN: Final = ("/health", "/webhooks/", "/billing/webhook", "/v1/billing/plans")


def describe(app: FastAPI) -> None:
    """Make the application's document tell of refusals and credentials; it is built once, when first asked for."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(plain())
        return app.openapi_schema

    app.openapi = openapi


def _described(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = model_json_schema(Problem)
    components["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "An access token of /auth/v1, or an API key of /v1/api-keys.",
        }
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method not in _METHODS or path.startswith("/health"):
                continue
            metered = METERED.get(f"{method.upper()} {path}")
            if metered is not None:
                operation["x-metered"] = metered.describe()
            operation["responses"].update({status: _refusal(status) for status in _REFUSALS})
            if not path.startswith(_OPEN):
                operation["security"] = [{"bearer": []}]
    return document


def _refusal(status: str) -> dict[str, Any]:
    description, code = _REFUSALS[status]
    example = {
        "type": "about:blank",
        "title": description.rstrip("."),
        "status": int(status),
        "code": code,
        "detail": description,
        "trace_id": None,
    }
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}
    content: dict[str, Any] = {PROBLEM_JSON: problem}
    if status == "503":
        content["application/json"] = {"schema": _MAINTENANCE}
    return {"description": description, "content": content}
