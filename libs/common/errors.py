"""What can go wrong, by meaning. Services subclass these with a stable public code; the edges translate them.

| meaning | HTTP | broker |
|---|---|---|
| Invalid | 422 | park |
| NotFound, Conflict | 404, 409 | park |
| Unauthenticated, Forbidden | 401, 403 | park |
| LimitExceeded | 429 + Retry-After | retry later |
| Unavailable | 503 + Retry-After | retry with back-off |
| anything else | 500 | retry a few times, then park |
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class VentureError(Exception):
    """Base of every error with a meaning to a caller.

    `detail` is shown to the caller: a finished sentence without secrets. `fields` are further public members of the
    problem document; their values must be JSON.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, detail: str, /, **fields: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields: Mapping[str, Any] = fields

    @property
    def retry_after_s(self) -> int | None:
        return None


class Invalid(VentureError):
    code = "invalid"
    status = 422


class BadRequest(Invalid):
    """The request is not even well formed; 400 rather than 422."""

    code = "bad_request"
    status = 400


class NotFound(VentureError):
    code = "not_found"
    status = 404


class Conflict(VentureError):
    code = "conflict"
    status = 409


class Unauthenticated(VentureError):
    code = "unauthenticated"
    status = 401


class ServiceTokenRefused(Unauthenticated):
    """Between services: it is the caller that is not known, whoever the call was made for."""

    code = "service_token_refused"


class Forbidden(VentureError):
    code = "forbidden"
    status = 403


class TooLarge(Invalid):
    code = "body_too_large"
    status = 413


class UnsupportedMediaType(Invalid):
    code = "unsupported_media_type"
    status = 415


class _Retryable(VentureError):
    def __init__(self, detail: str, /, *, retry_after_s: int = 1, **fields: Any) -> None:
        super().__init__(detail, **fields)
        self._retry_after_s = max(1, retry_after_s)

    @property
    def retry_after_s(self) -> int | None:
        return self._retry_after_s


class LimitExceeded(_Retryable):
    code = "limit_exceeded"
    status = 429


class Unavailable(_Retryable):
    """Something we depend on is away; the same request may succeed later."""

    code = "unavailable"
    status = 503
