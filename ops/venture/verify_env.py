"""`venture verify-env`: is every setting there, long enough and no well-known value? Shows no secret."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from pydantic import SecretStr

from libs.common.settings import check_secret, check_url_login
from ops.stack import dotenv
from ops.stack.environments import KNOWN_BY
from ops.stack.settings import ENGINE_PASSWORDS
from ops.venture.access import find_access
from ops.venture.desk import NOT_WELL, AsJson, Desk, leave

_SECRETS: Final = ("SERVICE_TOKEN_SECRET", "SUPABASE_JWT_SECRET")
_REQUIRED: Final = (
    *_SECRETS, "AUTH_SIGNING_KEYS", "SUPABASE_SERVICE_ROLE_KEY", "NEXT_PUBLIC_SUPABASE_URL",
    "NEXT_PUBLIC_SUPABASE_ANON_KEY", "FRONTEND_URL",
)  # fmt: skip
_RECOMMENDED: Final = ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "SENTRY_DSN", "REDIS_URL", "SMTP_URL")
_URLS: Final = ("NEXT_PUBLIC_SUPABASE_URL", "FRONTEND_URL", "SUPABASE_URL", "SENTRY_DSN", "SMTP_URL")
_LOGINS: Final = ("OPERATOR_DATABASE_URL", "AMQP_URL", "REDIS_URL")
_OPERATORS: Final = (
    "OPERATOR_DATABASE_URL", "AMQP_URL", "REDIS_URL", "GATEWAY_URL", "GATEWAY_URLS", "BILLING_URL", "METERING_URL",
    "AGENTS_URL", "SERVICE_TOKEN_SECRET", "SUPABASE_SERVICE_ROLE_KEY", "NEXT_PUBLIC_SUPABASE_ANON_KEY",
    "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "STRIPE_API_BASE", "FRONTEND_URL", "CORS_ORIGINS", "SMTP_URL",
    "SENTRY_DSN", "ADMIN_EMAIL", "ADMIN_PASSWORD", "SUPERUSER_DATABASE_URL",
)  # fmt: skip
_SHOWN: Final = 8


def verify_env(
    *,
    file: Annotated[
        Path | None, typer.Option(help="Judge this file, such as production.env, and nothing else.")
    ] = None,
    names: Annotated[bool, typer.Option("--list", help="Print the names that this command line reads.")] = False,
    as_json: AsJson = False,
) -> None:
    """Judge each setting; exit 1 if one that is needed is missing, short, or a well-known value."""
    desk = Desk(as_json=as_json)
    if names:
        desk.answer(_OPERATORS)
        desk.say("\n".join(_OPERATORS))
        return
    rows = judge(_values(file), is_production=file is not None)
    desk.table(rows, columns=("status", "setting", "value", "reason"))
    bad = sum(row["status"] == "failed" for row in rows)
    desk.say(f"{len(rows)} settings, {bad} not acceptable.")
    if bad:
        leave(NOT_WELL)


def _values(file: Path | None) -> Mapping[str, str]:
    if file is not None:
        return dotenv.parse(file.read_text())
    return {**find_access().values, **{name: os.environ[name] for name in _known() if os.environ.get(name)}}


def _known() -> set[str]:
    return {name for names in KNOWN_BY.values() for name in names}


def judge(values: Mapping[str, str], *, is_production: bool = False) -> list[dict[str, Any]]:
    """One row for each setting of any interest. In production the engines' passwords are in the file, too."""
    required = {*_REQUIRED, *(ENGINE_PASSWORDS if is_production else ())}
    if values.get("SUPABASE_URL"):
        required -= {"AUTH_SIGNING_KEYS"}
    names = sorted({*required, *_RECOMMENDED, *(_known() & values.keys())})
    return [_judge_one(name, values, is_required=name in required) for name in names]


def _judge_one(name: str, values: Mapping[str, str], *, is_required: bool) -> dict[str, Any]:
    value = values.get(name, "")
    reason = _reason(name, value, values) if value else ("is not set" if is_required else "")
    status = "failed" if reason else "ok" if value else "disabled"
    if not value and name in _RECOMMENDED:
        reason = "not set: optional, recommended"
    return {"status": status, "setting": name, "value": _masked(name, value), "reason": reason}


def _reason(name: str, value: str, values: Mapping[str, str]) -> str:
    """Why the value cannot be accepted; empty if it can."""
    try:
        if name in _SECRETS:
            check_secret(SecretStr(value))
        if name in _LOGINS:
            check_url_login(SecretStr(value))
    except ValueError as error:
        return str(error)
    if name in _URLS and not urlsplit(value).netloc:
        return "is no URL"
    if name == "STRIPE_SECRET_KEY" and not value.startswith(("sk_", "rk_")):
        return "is no key of Stripe's: those begin with sk_ or rk_"
    if name == "STRIPE_WEBHOOK_SECRET" and not all(one.strip().startswith("whsec_") for one in value.split(",")):
        return "is no webhook secret: those begin with whsec_"
    if name == "STRIPE_WEBHOOK_SECRET" and not values.get("STRIPE_SECRET_KEY"):
        return "is set without STRIPE_SECRET_KEY"
    return ""


def _masked(name: str, value: str) -> str:
    """Enough to recognise a secret by, and no more; all of what is none."""
    is_secret = any(word in name for word in ("KEY", "SECRET", "PASSWORD", "DSN")) or "@" in value
    if not is_secret or not value:
        return value
    return "…" if "@" in value else f"{value[:_SHOWN]}…"
