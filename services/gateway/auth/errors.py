"""How sign-in tells refusals: the two envelopes of Supabase Auth, chosen by the version the client asks for."""

from typing import Any, Final, cast

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from libs.common.errors import LimitExceeded, TooLarge, Unauthenticated, Unavailable, VentureError
from services.gateway.auth.domain import AuthError

API_VERSION: Final = "2024-01-01"


def render(error: AuthError, *, api_version: str | None) -> Response:
    """With the dated version `{code, message}` and the version header, else `{code: <status>, error_code, msg}`."""
    headers = {"Cache-Control": "no-store"}
    body: dict[str, Any]
    if api_version is not None and api_version >= API_VERSION:
        headers["X-Supabase-Api-Version"] = API_VERSION
        body = {"code": error.code, "message": error.message, **error.fields}
    else:
        headers["x-sb-error-code"] = error.code
        body = {"code": error.status, "error_code": error.code, "msg": error.message, **error.fields}
    return Response(orjson.dumps(body), error.status, headers, media_type="application/json")


def translate(error: Exception) -> AuthError:
    """The product's meanings in this contract's codes. A refusal never becomes a 5xx: clients would retry it."""
    match error:
        case AuthError():
            refusal = error
        case LimitExceeded():
            refusal = AuthError(429, "over_request_rate_limit", "Request rate limit reached")
        case Unavailable():
            refusal = AuthError(503, "unexpected_failure", "The service is temporarily unavailable, please try again")
        case Unauthenticated():
            refusal = AuthError(403, "bad_jwt", f"invalid JWT: {error.detail}")
        case TooLarge():
            refusal = AuthError(413, "request_entity_too_large", "Request body too large")
        case VentureError():
            refusal = AuthError(error.status, "validation_failed", error.detail)
        case _:
            refusal = AuthError(
                500, "unexpected_failure", "Unexpected failure, please check server logs for more information"
            )
    return refusal


def install_error_handlers(app: FastAPI) -> None:
    async def on_error(request: Request, error: Exception) -> Response:
        response = render(translate(error), api_version=request.headers.get("x-supabase-api-version"))
        if isinstance(error, VentureError) and error.retry_after_s is not None:
            response.headers["Retry-After"] = str(error.retry_after_s)
        return response

    async def on_invalid(request: Request, error: Exception) -> Response:
        errors = cast("RequestValidationError", error).errors()
        if any(e.get("type") == "json_invalid" for e in errors):
            refusal = AuthError(400, "bad_json", "Could not parse request body as JSON")
        else:
            field = ".".join(str(part) for part in errors[0]["loc"][1:]) or "body"
            refusal = AuthError(400, "validation_failed", f"{field}: {errors[0]['msg']}")
        return render(refusal, api_version=request.headers.get("x-supabase-api-version"))

    async def on_http(request: Request, error: Exception) -> Response:
        status = cast("HTTPException", error).status_code
        message = {404: "There is nothing here.", 405: "This method is not allowed here."}.get(
            status, "Not acceptable."
        )
        refusal = AuthError(status, "validation_failed", message)
        return render(refusal, api_version=request.headers.get("x-supabase-api-version"))

    app.add_exception_handler(AuthError, on_error)
    app.add_exception_handler(VentureError, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_error)
