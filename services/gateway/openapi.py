"""The application's own documents: OpenAPI of all public routes, sign-in among them."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import model_json_schema

from libs.common.http import Problem
from services.gateway.metered import METERED
from services.gateway.reference.domain import AUTH, complete


def describe(app: FastAPI, *, auth: FastAPI | None) -> None:
    """Make the application's document whole; it is built once, when first asked for.

    `auth` is what is mounted at /auth/v1; nothing where another house signs people in.
    """
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            if auth is not None:
                _take_in(document, auth.openapi())
            _tell_limits(document)
            app.openapi_schema = complete(document, problem=model_json_schema(Problem))
        return app.openapi_schema

    app.openapi = openapi


def _tell_limits(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            metered = METERED.get(f"{method.upper()} {path}")
            if metered is not None:
                operation["x-metered"] = metered.describe()


def _take_in(document: dict[str, Any], auth: dict[str, Any]) -> None:
    for path, methods in auth["paths"].items():
        document["paths"][f"{AUTH}{path}"] = {
            method: {**operation, "tags": ["auth"]} for method, operation in methods.items()
        }
    document.setdefault("components", {}).setdefault("schemas", {}).update(
        auth.get("components", {}).get("schemas", {})
    )
