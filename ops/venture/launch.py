"""`venture launch`: the checklist before going live, walked on a running stack, with a report somebody signs."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer

from libs.common.clock import iso_millis, system_clock
from libs.common.ids import new_id
from ops import migrate
from ops.demo.client import Client, DemoFailure, until
from ops.failure import Failure
from ops.files import write_private
from ops.venture import checking, doctor, services
from ops.venture.database import acting, audit, looking
from ops.venture.desk import NOT_WELL, AsJson, Desk, leave
from ops.venture.verify_env import judge

PAID_TIER: Final = "pro"
_WITHIN_S: Final = 20


@dataclass(slots=True)
class Walk:
    """The two people who walk through, made for it and deleted at its end."""

    desk: Desk
    people: list["Someone"] = field(default_factory=list["Someone"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Someone:
    id: str
    email: str
    password: str
    client: Client


class NotTried(Exception):
    """This step cannot be walked here; the text says why, and who has to look."""


def launch(
    *,
    report: Annotated[Path | None, typer.Option(help="Where to write the signed report (Markdown).")] = None,
    as_json: AsJson = False,
) -> None:
    """Walk the checklist before going live and sign what was seen. Exit 1 if a step fails."""
    desk = Desk(as_json=as_json)
    walk = Walk(desk)
    results: list[dict[str, str]] = []
    try:
        for title, step in STEPS:
            outcome, said = _try(lambda step=step: step(walk))
            results.append({"step": title, "result": outcome, "seen": said})
            desk.say(f"{outcome:9} {title}: {said}")
    finally:
        _leave_no_trace(walk)
    signed = sign(desk, results)
    if report is not None:
        write_private(report, as_markdown(signed), mode=0o644)
    audit(desk, "launch_verified", subject=signed["verdict"], after=signed)
    desk.answer(signed)
    desk.say(f"\n{signed['verdict']}, signed by {signed['signed_by']} at {signed['at']}: {signed['signature'][:16]}…")
    if signed["verdict"] != "ready":
        leave(NOT_WELL)


def _try(step: Callable[[], str]) -> tuple[str, str]:
    try:
        return "passed", step()
    except NotTried as reason:
        return "not tried", str(reason)
    except (Failure, DemoFailure, httpx.HTTPError, KeyError) as error:
        return "failed", f"{error}" if isinstance(error, Failure | DemoFailure) else type(error).__name__


def sign(desk: Desk, results: list[dict[str, str]]) -> dict[str, Any]:
    """The report with who saw it and when; the signature is an HMAC under the house's own secret over all of that."""
    report: dict[str, Any] = {
        "verdict": "not ready" if any(row["result"] == "failed" for row in results) else "ready",
        "at": iso_millis(system_clock()),
        "signed_by": desk.actor,
        "gateway": desk.access.need("GATEWAY_URL"),
        "steps": results,
    }
    secret = desk.access.need("SERVICE_TOKEN_SECRET")
    text = json.dumps(report, sort_keys=True)
    return {**report, "signature": hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()}


def as_markdown(report: dict[str, Any]) -> str:
    lines = [f"| {row['step']} | {row['result']} | {row['seen'].replace('|', '/')} |" for row in report["steps"]]
    return "\n".join(
        [
            f"# Pre-launch verification: {report['verdict']}",
            "",
            f"Gateway {report['gateway']}, {report['at']}, signed by {report['signed_by']}.",
            "",
            "| step | result | seen |",
            "|---|---|---|",
            *lines,
            "",
            f"HMAC-SHA256: `{report['signature']}`",
            "",
        ]
    )


def environment(walk: Walk) -> str:
    rows = judge(walk.desk.access.values)
    bad = [f"{row['setting']} {row['reason']}" for row in rows if row["status"] == "failed"]
    if bad:
        raise Failure("; ".join(bad))
    return f"{len(rows)} settings are acceptable"


def database(walk: Walk) -> str:
    facts = checking.check_db(walk.desk)
    return f"PostgreSQL {facts['version']}, connected as {facts['role']}"


def migrations(walk: Walk) -> str:
    with looking(walk.desk) as conn:
        row = conn.execute("SELECT to_regclass('public._yoyo_migration') IS NOT NULL AS is_there").fetchone() or {}
    if not walk.desk.access.get("SUPERUSER_DATABASE_URL"):
        raise NotTried("needs SUPERUSER_DATABASE_URL; `venture migrate status` where that is set")
    if not row.get("is_there"):
        raise Failure("No migration was ever applied")
    found = migrate.status(walk.desk.access.need("SUPERUSER_DATABASE_URL"))
    if pending := [name for name, is_applied in found if not is_applied]:
        raise Failure(f"pending: {', '.join(pending)}")
    return f"{len(found)} migrations, all applied"


def health(walk: Walk) -> str:
    rows = doctor.examine(walk.desk)
    if ill := [f"{row['where']} {row['check']}" for row in doctor.failing(rows)]:
        raise Failure(", ".join(ill))
    return f"{len(rows)} checks, none failed"


def sign_in(walk: Walk) -> str:
    """Two people sign up and in, and reach a protected route, which nobody reaches without signing in."""
    for _ in range(2):
        walk.people.append(_new_person(walk))
    for person in walk.people:
        profile = person.client.expect(person.client.call("GET", "/v1/profile"), 200)
        if profile["subscription_tier"] != "free":
            raise Failure(f"a new account begins on {profile['subscription_tier']}")
    stranger = Client(walk.desk.access.need("GATEWAY_URL"), api_key=_anon(walk))
    stranger.expect(stranger.call("GET", "/v1/profile"), 401)
    stranger.close()
    return "two accounts made, signed in, /v1/profile reached; without signing in it answers 401"


def billing(walk: Walk) -> str:
    """From the checkout page through Stripe's webhook to `subscription_status`."""
    if not walk.desk.access.get("STRIPE_SECRET_KEY"):
        raise NotTried("billing is switched off: no STRIPE_SECRET_KEY")
    person = _person(walk)
    checkout = person.client.expect(person.client.create("/v1/billing/checkout", {"tier": PAID_TIER}), 201)
    if not walk.desk.access.get("STRIPE_API_BASE"):
        raise NotTried(f"checkout opens ({checkout['id']}): pay by hand with a test card, then `users show`")
    until(lambda: _pay(checkout["url"]), what="paying at the emulator")

    def arrived() -> str | None:
        with looking(walk.desk) as conn:
            row = (
                conn.execute(
                    "SELECT subscription_status status, subscription_tier tier FROM user_profiles WHERE user_id = %s",
                    (person.id,),
                ).fetchone()
                or {}
            )
        return f"{row['tier']} is {row['status']}" if row.get("status") == "active" else None

    seen = until(arrived, what="subscription_status by webhook", within_s=_WITHIN_S)
    return f"checkout paid, webhook received, {seen}"


def _pay(url: str) -> str | None:
    """At the emulator's page, which takes the same form as a person would fill."""
    with httpx.Client(timeout=5, follow_redirects=False) as http:
        return "paid" if http.post(f"{url}/complete").status_code < 400 else None  # noqa: PLR2004


def row_level_security(walk: Walk) -> str:
    """A user meets only what is theirs; an admin meets everything."""
    if checking.check_rls(walk.desk)["status"] != "ok":
        raise Failure("tables without row-level security: `venture check rls`")
    one, other = _person(walk, 0), _person(walk, 1)
    run = one.client.expect(one.client.create("/v1/runs", {"task": "Say hello", "max_output_tokens": 20}), 202)
    until(lambda: _is_there(one.client, run["id"]), what="the run")
    other.client.expect(other.client.call("GET", f"/v1/runs/{run['id']}"), 404)
    seen = other.client.expect(other.client.call("GET", "/v1/runs"), 200)["items"]
    if seen:
        raise Failure("a new user sees the runs of somebody")
    refused = other.client.call("GET", "/v1/admin/users").status_code
    if refused not in {403, 404}:
        raise Failure(f"a user gets {refused} from an admin route")
    return f"another's run is 404, admin routes {refused}; {_as_admin(walk, one)}"


def _as_admin(walk: Walk, one: Someone) -> str:
    email, password = walk.desk.access.get("ADMIN_EMAIL"), walk.desk.access.get("ADMIN_PASSWORD")
    if not (email and password):
        return "as admin not tried: no ADMIN_EMAIL and ADMIN_PASSWORD"
    admin = Client(walk.desk.access.need("GATEWAY_URL"), api_key=_anon(walk))
    _sign_in(admin, email, password)
    found = admin.expect(admin.call("GET", f"/v1/admin/users?search={one.id}"), 200)["items"]
    admin.close()
    if [user["id"] for user in found] != [one.id]:
        raise Failure("an admin does not find a user")
    return "an admin finds every user"


def _is_there(client: Client, run_id: str) -> bool:
    return client.call("GET", f"/v1/runs/{run_id}").status_code == 200  # noqa: PLR2004


def _new_person(walk: Walk) -> Someone:
    email, password = f"launch-{new_id().hex[-12:]}@example.com", secrets.token_urlsafe(18)
    client = Client(walk.desk.access.need("GATEWAY_URL"), api_key=_anon(walk))
    body = {"email": email, "password": password}
    made = client.expect(client.call("POST", "/auth/v1/signup", body=body), 200)
    user_id = str((made.get("user") or made)["id"])
    if "access_token" not in made:  # the address would have to be confirmed by its mail; the operator does it instead
        services.auth_admin(walk.desk, "PUT", f"/admin/users/{user_id}", body={"email_confirm": True})
    _sign_in(client, email, password)
    return Someone(id=user_id, email=email, password=password, client=client)


def _sign_in(client: Client, email: str, password: str) -> None:
    body = {"email": email, "password": password}
    session = client.expect(client.call("POST", "/auth/v1/token?grant_type=password", body=body), 200)
    client.sign_in(session["access_token"])


def _person(walk: Walk, number: int = 0) -> Someone:
    if len(walk.people) <= number:
        raise Failure("nobody could sign in")
    return walk.people[number]


def _anon(walk: Walk) -> str:
    return walk.desk.access.need("NEXT_PUBLIC_SUPABASE_ANON_KEY")


def _leave_no_trace(walk: Walk) -> None:
    for person in walk.people:
        person.client.close()
        with acting(walk.desk, "user_deleted", subject=person.id) as act:
            act.after = {"reason": "made for the launch verification"}
            act.conn.execute("DELETE FROM auth.users WHERE id = %s", (person.id,))


STEPS: Final[tuple[tuple[str, Callable[[Walk], str]], ...]] = (
    ("Environment variables", environment),
    ("Database connection", database),
    ("Migrations", migrations),
    ("Health of every service", health),
    ("Sign up, sign in, protected route", sign_in),
    ("Billing from checkout to subscription_status", billing),
    ("Row-level security as user and as admin", row_level_security),
)
