"""What a service refuses to start with, and how it says so: the setting and the reason, never the value."""

import json
from collections.abc import Mapping
from typing import Final

import jwt
import pytest

from libs.common.settings import EXIT_CONFIG, load
from services.agents.settings import Settings as AgentsSettings
from services.billing.settings import Settings as BillingSettings
from services.gateway.auth.tokens import new_signing_key
from services.gateway.settings import Settings as GatewaySettings
from services.metering.settings import Settings as MeteringSettings

SETTINGS: Final = {
    "gateway": GatewaySettings,
    "billing": BillingSettings,
    "metering": MeteringSettings,
    "agents": AgentsSettings,
}
GOOD: Final = "f3b1c0e97d5a48269c1e8b7a6d5f4e3c2b1a09f8"
OTHER: Final = "0c9e8d7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d"
# The keys of every `supabase start`, and of its documentation: whoever reads that can sign in as anybody.
DEMO_SECRET: Final = "super-secret-jwt-token-with-at-least-32-characters-long"
DEMO_CLAIMS: Final = {"iss": "supabase-demo", "exp": 1_983_812_996}
DEMO_ANON: Final = jwt.encode({**DEMO_CLAIMS, "role": "anon"}, DEMO_SECRET)
DEMO_SERVICE: Final = jwt.encode({**DEMO_CLAIMS, "role": "service_role"}, DEMO_SECRET)
ENVIRONMENT: Final[Mapping[str, str]] = {
    "DATABASE_URL": f"postgresql://venture:{GOOD}@localhost/venture",
    "AMQP_URL": f"amqp://venture:{GOOD}@localhost/venture",
    "REDIS_URL": f"redis://venture:{GOOD}@localhost/0",
    "SERVICE_TOKEN_SECRET": GOOD,
    "NEXT_PUBLIC_SUPABASE_ANON_KEY": jwt.encode({"role": "anon"}, OTHER),
    "SUPABASE_SERVICE_ROLE_KEY": jwt.encode({"role": "service_role"}, OTHER),
    "SUPABASE_JWT_SECRET": OTHER,
    "AUTH_SIGNING_KEYS": json.dumps([new_signing_key("k")]),
}
SHORT: Final = "Xk9#mQ2$vL7"


def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], service: str, **changed: str | None
) -> str:
    """What the service says when it does not start; empty if it would."""
    for name, value in {**ENVIRONMENT, **changed}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    code: object = 0
    try:
        load(SETTINGS[service])
    except SystemExit as error:
        code = error.code
    assert code in {0, EXIT_CONFIG}
    return capsys.readouterr().err


@pytest.mark.parametrize("service", SETTINGS)
def test_with_secrets_of_its_own_a_service_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], service: str
) -> None:
    assert refusal(monkeypatch, capsys, service) == ""


@pytest.mark.parametrize("service", SETTINGS)
@pytest.mark.parametrize("name", ["DATABASE_URL", "AMQP_URL", "REDIS_URL", "SERVICE_TOKEN_SECRET"])
def test_without_a_secret_no_service_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], service: str, name: str
) -> None:
    for value in (None, ""):
        said = refusal(monkeypatch, capsys, service, **{name: value})
        assert f"{name}: " in said
        assert "Refusing to start" in said


@pytest.mark.parametrize("service", SETTINGS)
@pytest.mark.parametrize(
    "value",
    [
        SHORT, GOOD[:31], "a" * 64, "abababababababababababababababababab", "changeme-changeme-changeme-changeme",
        "your-super-secret-and-long-value-0123456789", "secret-secret-secret-secret-secret-secret",
        "password-password-password-password-123", "example-0123456789-example-0123456789", DEMO_SECRET,
        DEMO_SECRET.upper(),
    ],
)  # fmt: skip
def test_a_short_or_known_secret_is_refused_without_being_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], service: str, value: str
) -> None:
    said = refusal(monkeypatch, capsys, service, SERVICE_TOKEN_SECRET=value)
    assert "SERVICE_TOKEN_SECRET: " in said
    assert value not in said


@pytest.mark.parametrize("name", ["DATABASE_URL", "AMQP_URL", "REDIS_URL"])
@pytest.mark.parametrize(
    "login", ["guest:guest", "postgres:postgres", "admin:admin", "venture:password", "venture:changeme", "root:root"]
)
def test_a_known_login_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, login: str
) -> None:
    scheme = {"DATABASE_URL": "postgresql", "AMQP_URL": "amqp", "REDIS_URL": "redis"}[name]
    said = refusal(monkeypatch, capsys, "metering", **{name: f"{scheme}://{login}@localhost/venture"})
    assert f"{name}: " in said
    assert login not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NEXT_PUBLIC_SUPABASE_ANON_KEY", DEMO_ANON),
        ("SUPABASE_SERVICE_ROLE_KEY", DEMO_SERVICE),
        ("SUPABASE_JWT_SECRET", DEMO_SECRET),
        ("SUPABASE_JWT_SECRET", "your-super-secret-jwt-token-with-at-least-32-characters-long"),
        ("AUTH_SIGNING_KEYS", "[]"),
        ("AUTH_SIGNING_KEYS", "not json"),
    ],
)
def test_the_demo_keys_that_everybody_has_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    said = refusal(monkeypatch, capsys, "gateway", **{name: value})
    assert name in said
    assert value not in said


@pytest.mark.parametrize("changed", [{"SERVICE_TOKEN_SECRET": OTHER}, {"SUPABASE_SERVICE_ROLE_KEY": "ANON"}])
def test_one_secret_has_one_purpose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changed: dict[str, str]
) -> None:
    anon = ENVIRONMENT["NEXT_PUBLIC_SUPABASE_ANON_KEY"]
    values = {name: anon if value == "ANON" else value for name, value in changed.items()}
    assert "equal" in refusal(monkeypatch, capsys, "gateway", **values)


def test_production_takes_neither_every_origin_nor_chatter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(monkeypatch, capsys, "gateway", CORS_ORIGINS="*", ENVIRONMENT="development") == ""
    assert "CORS_ORIGINS" in refusal(monkeypatch, capsys, "gateway", CORS_ORIGINS="*", ENVIRONMENT="production")
    for service in SETTINGS:
        said = refusal(monkeypatch, capsys, service, CORS_ORIGINS=None, LOG_LEVEL="DEBUG", ENVIRONMENT="production")
        assert "LOG_LEVEL" in said, service


@pytest.mark.parametrize("environment", ["development", "test", "staging"])
def test_a_live_stripe_key_is_for_production_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: str
) -> None:
    for key in ("sk_live_0123456789abcdef0123", "rk_live_0123456789abcdef0123"):
        given = {"STRIPE_SECRET_KEY": key, "STRIPE_WEBHOOK_SECRET": f"whsec_{GOOD}"}
        said = refusal(monkeypatch, capsys, "billing", **given, ENVIRONMENT=environment)
        assert "STRIPE_SECRET_KEY" in said
        assert key not in said
        assert refusal(monkeypatch, capsys, "billing", **given, ENVIRONMENT="production") == ""


@pytest.mark.parametrize("service", SETTINGS)
def test_settings_do_not_show_their_secrets_when_they_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], service: str
) -> None:
    refusal(monkeypatch, capsys, service)
    shown = repr(load(SETTINGS[service])) + str(load(SETTINGS[service]))
    assert GOOD not in shown
    assert OTHER not in shown
