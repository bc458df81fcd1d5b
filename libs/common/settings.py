"""What every service reads from the environment, and how it refuses to start: naming the setting and the cure."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, DirectoryPath, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from libs.common.broker.message import MOST_EVENTS

MIN_SECRET_LENGTH: Final = 32
EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h: supervisors can tell a misconfiguration from a crash

DEMO_JWT_SECRET: Final = "super-secret-jwt-token-with-at-least-32-characters-long"  # noqa: S105 - known to everybody
"""Supabase's documented default: whoever reads their documentation has it."""

_WELL_KNOWN: Final = (
    "your-super-secret",
    DEMO_JWT_SECRET,
    "changeme",
    "change-me",
    "secret",
    "password",
    "example",
)
_WELL_KNOWN_PASSWORDS: Final = frozenset(
    {"admin", "changeme", "guest", "password", "postgres", "root", "secret", "test"}
)


def check_secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if len(text) < MIN_SECRET_LENGTH:
        raise ValueError(f"is shorter than {MIN_SECRET_LENGTH} characters")
    if len(set(text)) < 8 or any(text.lower().startswith(word) for word in _WELL_KNOWN):  # noqa: PLR2004
        raise ValueError("is a well-known or trivial value; generate a random one")
    return value


def check_url_login(value: SecretStr) -> SecretStr:
    url = urlsplit(value.get_secret_value())
    password = unquote(url.password or "").lower()
    if password and (password in _WELL_KNOWN_PASSWORDS or password == unquote(url.username or "").lower()):
        raise ValueError("uses a well-known login; give the service its own user and a random password")
    return value


def empty_as_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


def split_commas(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Secret = Annotated[SecretStr, AfterValidator(check_secret)]
UrlWithLogin = Annotated[SecretStr, AfterValidator(check_url_login)]


class CommonSettings(BaseSettings):
    """Settings of every service. Names are the environment variables' names in lower case."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    environment: str = "development"
    service_version: str = "0.1.0"
    log_level: str = Field(default="INFO", pattern=re.compile(r"^(?i:DEBUG|INFO|WARNING|ERROR)$"))
    host: str = "127.0.0.1"
    port: int
    metrics_port: int = 0
    disk_paths: Annotated[tuple[DirectoryPath, ...], NoDecode, BeforeValidator(split_commas)] = (Path("/"),)
    """Where the stack keeps its data: `/metrics` tells of the fullest of these disks. In a container, its own layer."""
    database_url: UrlWithLogin
    amqp_url: UrlWithLogin
    redis_url: UrlWithLogin
    service_token_secret: Secret
    broker_events_per_message: int = Field(default=MOST_EVENTS, ge=1, le=1_000)
    """Events of one type that may travel in one message. 1 while services run that were not made to unpack them."""
    sentry_dsn: str | None = None
    otel_exporter_otlp_endpoint: str | None = None

    @model_validator(mode="after")
    def _no_chatter_in_production(self) -> Self:
        if self.environment == "production" and self.log_level.upper() == "DEBUG":
            raise ValueError("LOG_LEVEL is DEBUG; in production what libraries then say may repeat people's data")
        return self


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load(settings_class: type[SettingsT]) -> SettingsT:
    """Read the environment; on anything missing, short or default print each setting with its reason and exit 78."""
    try:
        return settings_class()
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_input=False)]
        sys.stderr.write(
            "Refusing to start: these settings are missing or not acceptable.\n"
            + "\n".join(lines)
            + "\nSet them in the environment; .env.example documents each.\n"
        )
        raise SystemExit(EXIT_CONFIG) from None
