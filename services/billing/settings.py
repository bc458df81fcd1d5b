"""The only module of billing that reads the environment."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from libs.common.settings import CommonSettings


def _check_frontend_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("is not an http(s) URL")
    return value.rstrip("/")


class Settings(CommonSettings):
    port: int = 8001
    stripe_secret_key: SecretStr | None = None
    """Left out, billing is switched off: its routes answer 503 and everything else works."""
    stripe_webhook_secret: SecretStr | None = None
    """Needed with the key. Several with commas: while Stripe rotates, and for a destination of thin events."""
    stripe_api_base: str | None = None
    stripe_calls_per_s: float | None = Field(default=None, gt=0, le=1000)
    """At most so many, per worker. Left out: 20 with a test key, 80 with a live one, of Stripe's 25 and 100."""
    frontend_url: Annotated[str, AfterValidator(_check_frontend_url)] = "http://localhost:3000"
    billing_grace_days: int = Field(default=7, ge=0, le=90)
    billing_event_keep_days: int = Field(default=90, ge=7, le=3650)
    """How long handled webhook events are kept. Stripe repeats a delivery for three days."""

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        text = self.stripe_webhook_secret.get_secret_value() if self.stripe_webhook_secret else ""
        return tuple(secret.strip() for secret in text.split(",") if secret.strip())

    @property
    def stripe_key(self) -> str:
        return self.stripe_secret_key.get_secret_value() if self.stripe_secret_key else ""

    @property
    def is_live(self) -> bool:
        """Whether the key moves real money; Stripe's live keys are `sk_live_…` and `rk_live_…`."""
        return self.stripe_key.startswith(("sk_live_", "rk_live_"))

    @model_validator(mode="after")
    def _real_money_in_production_alone(self) -> Self:
        if self.is_live and self.environment != "production":
            raise ValueError("STRIPE_SECRET_KEY is a live key, and ENVIRONMENT is not production; use a test key here")
        return self

    @model_validator(mode="after")
    def _require_webhook_secret(self) -> Self:
        if self.stripe_secret_key is None:
            return self
        if not self.webhook_secrets:
            raise ValueError("STRIPE_WEBHOOK_SECRET is needed where STRIPE_SECRET_KEY is set")
        if any(len(secret) < 16 for secret in self.webhook_secrets):  # noqa: PLR2004 - whsec_ and a little is no secret
            raise ValueError("STRIPE_WEBHOOK_SECRET is too short to be one of Stripe's")
        return self
