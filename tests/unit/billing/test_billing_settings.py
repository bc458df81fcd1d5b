"""What billing refuses to start with."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.billing.settings import Settings

COMMON: dict[str, Any] = {
    "database_url": "postgresql://billing:x9@127.0.0.1/venture",
    "amqp_url": "amqp://billing:x9@127.0.0.1/",
    "redis_url": "redis://127.0.0.1/0",
    "service_token_secret": "0123456789abcdefghijklmnopqrstuvwxyz",
}


def settings(**changes: Any) -> Settings:
    return Settings(**{**COMMON, **changes})


def test_without_a_key_billing_is_off_and_needs_nothing() -> None:
    assert settings().stripe_secret_key is None
    assert not settings().is_live


def test_a_key_needs_a_webhook_secret() -> None:
    with pytest.raises(ValidationError, match="STRIPE_WEBHOOK_SECRET is needed"):
        settings(stripe_secret_key="sk_test_1")


def test_two_webhook_secrets_are_read_apart() -> None:
    both = settings(stripe_secret_key="sk_test_1", stripe_webhook_secret="whsec_aaaaaaaaaaaa , whsec_bbbbbbbbbbbb")
    assert both.webhook_secrets == ("whsec_aaaaaaaaaaaa", "whsec_bbbbbbbbbbbb")


@pytest.mark.parametrize(("key", "is_live"), [("sk_live_1", True), ("rk_live_1", True), ("sk_test_1", False)])
def test_the_key_says_whether_money_is_real(key: str, *, is_live: bool) -> None:
    given = settings(environment="production", stripe_secret_key=key, stripe_webhook_secret="whsec_aaaaaaaaaaaa")
    assert given.is_live is is_live


def test_the_frontend_s_address_must_be_one() -> None:
    assert settings(frontend_url="https://app.example.com/").frontend_url == "https://app.example.com"
    with pytest.raises(ValidationError):
        settings(frontend_url="app.example.com")
