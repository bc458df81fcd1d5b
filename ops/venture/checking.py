"""`venture check`: one dependency or guarantee at a time, tried for real."""

import base64
import json
import smtplib
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import httpx
import typer

from libs.common.ids import new_id
from ops.failure import Failure
from ops.venture import services
from ops.venture.database import looking
from ops.venture.desk import NOT_WELL, AsJson, Desk, leave
from ops.venture.parked import with_broker

_OK, _REFUSED, _SMTP_OK, _TIMEOUT_S = 200, 400, 250, 5
_STRIPE: Final = "https://api.stripe.com"


def commands() -> typer.Typer:
    app = typer.Typer(
        help="Try one thing for real: db, rls, auth, cors, stripe, mail, queues, sentry.", no_args_is_help=True
    )
    for name, (probe, says) in CHECKS.items():
        app.command(name, help=says)(_command(probe))
    return app


def _command(probe: Callable[[Desk], dict[str, Any]]) -> Callable[..., None]:
    def run(*, as_json: AsJson = False) -> None:
        desk = Desk(as_json=as_json)
        facts = probe(desk)
        desk.answer(facts)
        desk.facts(facts)
        if facts["status"] == "failed":
            leave(NOT_WELL)

    return run


def check_db(desk: Desk) -> dict[str, Any]:
    with looking(desk) as conn:
        row = (
            conn.execute(
                """
            SELECT current_user AS role, current_database() AS database, current_setting('server_version') AS version,
                   (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
                   current_setting('max_connections')::int AS max_connections
            """
            ).fetchone()
            or {}
        )
    return {"status": "ok", **row}


def check_rls(desk: Desk) -> dict[str, Any]:
    """Every table with users' data has row-level security, forced; and its policies, as the runbook lists them."""
    with looking(desk) as conn:
        bare = conn.execute(
            """
            SELECT n.nspname AS schema, c.relname AS table FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
                AND (n.nspname IN ('public', 'auth') OR EXISTS (
                    SELECT FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attname = 'user_id'
                        AND n.nspname IN ('gateway', 'billing', 'metering', 'agents')
                        AND NOT (n.nspname = 'gateway' AND c.relname = 'erasures')
                ))
                AND c.relname NOT LIKE '%yoyo%'
            ORDER BY 1, 2
            """
        ).fetchall()
        policies = conn.execute(
            """
            SELECT schemaname, tablename, policyname, permissive, roles::text AS roles, cmd, qual
            FROM pg_policies WHERE schemaname = 'public' ORDER BY tablename, policyname
            """
        ).fetchall()
    return {"status": "failed" if bare else "ok", "without row-level security": bare, "policies": policies}


def check_auth(desk: Desk) -> dict[str, Any]:
    """The sign-in service answers, its keys are published, and a wrong password is refused as it should be."""
    address, key = desk.access.need("GATEWAY_URL"), desk.access.need("NEXT_PUBLIC_SUPABASE_ANON_KEY")
    wrong = {"email": f"nobody-{new_id()}@example.com", "password": "no-such-password"}
    with services.client() as http:
        health = _status(lambda: http.get(f"{address}/auth/v1/health", headers={"apikey": key}))
        keys = _status(lambda: http.get(f"{address}/auth/v1/.well-known/jwks.json"))
        refused = _status(
            lambda: http.post(
                f"{address}/auth/v1/token", params={"grant_type": "password"}, json=wrong, headers={"apikey": key}
            )
        )
    is_ok = health == keys == _OK and refused == _REFUSED
    role = _role(key)
    return {
        "status": "ok" if is_ok and role == "anon" else "failed",
        "health": health,
        "published keys": keys,
        "a wrong password": refused,
        "the anon key's role": role,
    }


def _role(key: str) -> str:
    try:
        part = key.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        return "none: it is no token"
    return str(claims.get("role"))


def check_cors(desk: Desk) -> dict[str, Any]:
    """The frontend's origin may call us from a browser, and a stranger's may not."""
    address, frontend = desk.access.need("GATEWAY_URL"), urlsplit(desk.access.need("FRONTEND_URL"))
    origins = [o.strip() for o in desk.access.get("CORS_ORIGINS").split(",") if o.strip()]
    wanted = origins or [f"{frontend.scheme}://{frontend.netloc}"]
    rows = [{"origin": o, "is_allowed": _allowed(address, o)} for o in (*wanted, "https://stranger.example")]
    is_ok = all(row["is_allowed"] for row in rows[:-1]) and not rows[-1]["is_allowed"]
    return {"status": "ok" if is_ok else "failed", "origins": rows}


def _allowed(address: str, origin: str) -> bool:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    try:
        with services.client() as http:
            return (
                http.options(f"{address}/v1/runs", headers=headers).headers.get("access-control-allow-origin") == origin
            )
    except httpx.HTTPError as error:
        raise Failure(f"The gateway does not answer ({type(error).__name__}). Runbook: service-down") from None


def check_stripe(desk: Desk) -> dict[str, Any]:
    """The key is accepted by Stripe, and what our webhook last received."""
    key = desk.access.get("STRIPE_SECRET_KEY")
    if not key:
        return {"status": "disabled", "reason": "no STRIPE_SECRET_KEY: billing's routes answer 503"}
    base = desk.access.get("STRIPE_API_BASE") or _STRIPE
    try:
        with httpx.Client(timeout=10) as http:
            answer = http.get(f"{base}/v1/customers", params={"limit": 1}, auth=(key, ""))
    except httpx.HTTPError as error:
        return {
            "status": "failed",
            "stripe": base,
            "reason": f"{type(error).__name__}. Runbook: verify-stripe-configuration",
        }
    with looking(desk) as conn:
        events = (
            conn.execute(
                """SELECT count(*) AS stored, count(*) FILTER (WHERE handled_at IS NULL) AS unhandled,
                      max(received_at) AS last FROM billing.stripe_events"""
            ).fetchone()
            or {}
        )
    return {
        "status": "ok" if answer.status_code == _OK else "failed",
        "stripe": base,
        "key": f"{key[:8]}…",
        "webhook secret": f"{desk.access.get('STRIPE_WEBHOOK_SECRET')[:8]}…",
        "answer": answer.status_code,
        **{f"events {name}": value for name, value in events.items()},
    }


def check_mail(desk: Desk) -> dict[str, Any]:
    """The mail server greets us and takes our login; nothing is sent."""
    url = desk.access.get("SMTP_URL")
    if not url:
        return {"status": "disabled", "reason": "no SMTP_URL: letters wait"}
    parts = urlsplit(url)
    opener = smtplib.SMTP_SSL if parts.scheme == "smtps" else smtplib.SMTP
    try:
        with opener(parts.hostname or "", parts.port or 0, timeout=_TIMEOUT_S) as server:
            if parts.username:
                server.login(unquote(parts.username), unquote(parts.password or ""))
            code, _ = server.noop()
    except (OSError, smtplib.SMTPException) as error:
        return {"status": "failed", "server": parts.hostname, "reason": f"{type(error).__name__}. Runbook: mail"}
    return {
        "status": "ok" if code == _SMTP_OK else "failed",
        "server": f"{parts.hostname}:{parts.port}",
        "answer": code,
    }


def check_queues(desk: Desk) -> dict[str, Any]:
    queues = with_broker(desk, lambda broker: broker.queues())
    rows = [
        {"queue": name, "waiting": it.waiting, "parked": it.parked, "consumers": it.consumers}
        for name, it in queues.items()
    ]
    is_ok = bool(rows) and all(row["consumers"] and not row["parked"] for row in rows)
    return {"status": "ok" if is_ok else "failed", "queues": rows}


def check_sentry(desk: Desk) -> dict[str, Any]:
    """Send one event that says it is a test."""
    dsn = desk.access.get("SENTRY_DSN")
    if not dsn:
        return {"status": "disabled", "reason": "no SENTRY_DSN: errors are only logged"}
    parts = urlsplit(dsn)
    url = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}/api{parts.path}/store/"
    headers = {"X-Sentry-Auth": f"Sentry sentry_version=7, sentry_key={parts.username}, sentry_client=venture/1"}
    event = {"event_id": new_id().hex, "level": "info", "platform": "python", "message": "venture check sentry"}
    try:
        with httpx.Client(timeout=10) as http:
            answer = http.post(url, json=event, headers=headers)
    except httpx.HTTPError as error:
        return {"status": "failed", "reason": type(error).__name__}
    return {"status": "ok" if answer.status_code == _OK else "failed", "answer": answer.status_code, **event}


def _status(call: Callable[[], httpx.Response]) -> int | str:
    try:
        return call().status_code
    except httpx.HTTPError as error:
        return type(error).__name__


CHECKS: Final[Mapping[str, tuple[Callable[[Desk], dict[str, Any]], str]]] = {
    "db": (check_db, "Connect as venture_operator."),
    "rls": (check_rls, "Is row-level security on wherever there is users' data? Lists the policies."),
    "auth": (check_auth, "Does sign-in answer, publish its keys and refuse a wrong password?"),
    "cors": (check_cors, "May the frontend's origin call us, and a stranger's not?"),
    "stripe": (check_stripe, "Does Stripe accept our key? What did the webhook receive?"),
    "mail": (check_mail, "Does the mail server take our login? Sends nothing."),
    "queues": (check_queues, "Has every queue a consumer, and is nothing parked?"),
    "sentry": (check_sentry, "Send a test event."),
}
