"""The error envelope of the API, one class with a constructor for each kind this emulator raises."""

from typing import Any, Self

Json = dict[str, Any]
"""A JSON object of the API. Fields that start with an underscore are the emulator's own and never leave it."""


class ApiError(Exception):
    """An answer that is an error.

    `keeps_effects` says that what the call did before it failed stays (a declined charge is a fact); otherwise the
    call's writes are rolled back. `is_validation` says that an idempotency key is not spent on it.
    """

    def __init__(self, status: int, kind: str, message: str, **fields: object) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.fields = fields
        self.keeps_effects = False
        self.is_validation = False

    def body(self) -> Json:
        extra = {name: value for name, value in self.fields.items() if value is not None}
        return {"error": {"type": self.kind, "message": self.message, **extra}}

    @classmethod
    def invalid(cls, message: str, *, param: str | None = None, code: str | None = None) -> Self:
        """400: the call can never succeed as it was sent."""
        error = cls(400, "invalid_request_error", message, param=param, code=code)
        error.is_validation = True
        return error

    @classmethod
    def missing_param(cls, param: str) -> Self:
        return cls.invalid(f"Missing required param: {param}.", param=param, code="parameter_missing")

    @classmethod
    def not_found(cls, noun: str, object_id: str, *, param: str = "id", status: int = 404) -> Self:
        """404 for the object a path names; pass 400 where a parameter names it."""
        return cls(
            status, "invalid_request_error", f"No such {noun}: '{object_id}'", param=param, code="resource_missing"
        )

    @classmethod
    def declined(cls, code: str, *, keeps_effects: bool, **fields: object) -> Self:
        """402: the card said no. `code` is the decline code (`card_declined` stands for a generic decline)."""
        own_codes = {"expired_card", "authentication_required", "incorrect_cvc", "processing_error"}
        error = cls(
            402,
            "card_error",
            DECLINE_MESSAGES.get(code, "Your card was declined."),
            code=code if code in own_codes else "card_declined",
            decline_code="generic_decline" if code == "card_declined" else code,
            **fields,
        )
        error.keeps_effects = keeps_effects
        return error


DECLINE_MESSAGES = {
    "card_declined": "Your card was declined.",
    "insufficient_funds": "Your card has insufficient funds.",
    "expired_card": "Your card has expired.",
    "authentication_required": "This payment requires authentication by the cardholder.",
}
