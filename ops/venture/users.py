"""`venture users`: find, show, make an admin, reset a password, ban, delete."""

import secrets
import time
from typing import Annotated, Any, Final
from uuid import UUID

import httpx
import typer

from ops.failure import Failure
from ops.venture import services
from ops.venture.database import Connection, acting, audit, looking
from ops.venture.desk import NOT_WELL, AsJson, Desk, DryRun, NotFound, Reason, Yes, leave

Who = Annotated[str, typer.Argument(help="Id or e-mail address.", show_default=False)]
_COLUMNS: Final = ("id", "email", "tier", "status", "is_admin", "is_banned", "created_at", "last_sign_in_at")
_FOREVER: Final = "876000h"
_ACCEPTED: Final = 200
_POLL_S: Final = 0.5


def commands() -> typer.Typer:
    app = typer.Typer(help="Users: find, show, create-admin, reset-password, ban, delete.", no_args_is_help=True)
    app.command("find")(find)
    app.command("show")(show)
    app.command("create-admin")(create_admin)
    app.command("reset-password")(reset_password)
    app.command("ban")(ban)
    app.command("delete")(delete)
    return app


def find(
    search: Annotated[str, typer.Argument(help="Part of the address or name, or a whole id; none: the newest.")] = "",
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List users, newest first."""
    desk = Desk(as_json=as_json)
    with looking(desk) as conn:
        rows = conn.execute(
            """
            SELECT u.id, u.email, p.subscription_tier AS tier, p.subscription_status AS status,
                   coalesce(p.premium_features -> 'admin' = 'true', false) AS is_admin,
                   coalesce(u.banned_until > now(), false) AS is_banned, u.created_at, u.last_sign_in_at
            FROM auth.users u JOIN user_profiles p ON p.user_id = u.id
            WHERE u.deleted_at IS NULL AND (%(search)s = '' OR position(lower(%(search)s) IN u.email) > 0
                OR position(lower(%(search)s) IN lower(p.name)) > 0 OR u.id::text = %(search)s)
            ORDER BY u.created_at DESC, u.id DESC LIMIT %(limit)s
            """,
            {"search": search, "limit": limit},
        ).fetchall()
    desk.table(rows, columns=_COLUMNS, empty="No such user.")


def show(who: Who, *, as_json: AsJson = False) -> None:
    """All an operator needs of one user: plan, usage, holds, runs, Stripe's customer, what was done to them."""
    desk = Desk(as_json=as_json)
    with looking(desk) as conn:
        user = get_user(conn, who)
        uid = {"id": user["id"], "text": str(user["id"])}
        facts: dict[str, Any] = {
            **user,
            "usage": conn.execute(
                """SELECT metric_type, metric_value, held_value, period_start FROM usage_metrics
                   WHERE user_id = %(text)s ORDER BY period_start DESC, metric_type LIMIT 8""",
                uid,
            ).fetchall(),
            "runs": conn.execute(
                """SELECT status, count(*) AS count FROM agent_runs WHERE user_id = %(text)s
                   GROUP BY status ORDER BY status""",
                uid,
            ).fetchall(),
            "subscriptions": conn.execute(
                """SELECT id, status, tier, current_period_end, cancel_at FROM billing.subscriptions
                   WHERE user_id = %(id)s ORDER BY created_at DESC""",
                uid,
            ).fetchall(),
            "audit": conn.execute(
                """SELECT at, actor, action, after FROM gateway.audit_log WHERE subject = %(text)s
                   ORDER BY at DESC LIMIT 10""",
                uid,
            ).fetchall(),
        }
    desk.answer(facts)
    desk.facts(facts)


def create_admin(
    who: Who,
    *,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the rights away instead.")] = False,
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make a user an admin; an address without an account gets one, and a mail to choose a password."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    desk.confirm(f"{'Take the rights of' if revoke else 'Make'} {who} {'away' if revoke else 'an admin'}?")
    with looking(desk) as conn:
        known = find_user(conn, who)
    if known is None:
        if "@" not in who or revoke:
            raise NotFound(f"There is no user {who}.")
        if dry_run:
            desk.report(f"{who} gets an account and is an admin.", {"action": "user_created", "subject": who})
            return
        audit(desk, "user_created")
        body = {"email": who, "password": secrets.token_urlsafe(24), "email_confirm": True}
        services.auth_admin(desk, "POST", "/admin/users", body=body)
        _send_recovery(desk, who)
    with acting(desk, "user_changed") as act:
        user = get_user(act.conn, who)
        act.subject = str(user["id"])
        act.before = {"admin": user["is_admin"]}
        act.conn.execute(
            """
            UPDATE user_profiles SET premium_features = CASE WHEN %(revoke)s THEN premium_features - 'admin'
                ELSE jsonb_set(premium_features, '{admin}', 'true') END
            WHERE user_id = %(id)s
            """,
            {"revoke": revoke, "id": user["id"]},
        )
        act.after = {"admin": not revoke, "reason": reason}
    done = "is no admin any more" if revoke else "is an admin"
    desk.report(f"{who} {done}; it takes effect within 5 s.", {"id": user["id"], "admin": not revoke})


def reset_password(who: Who, *, dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Send the mail with which the user chooses a new password; nobody else ever knows it."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    with looking(desk) as conn:
        user = get_user(conn, who)
    desk.confirm(f"Send {user['email']} a mail to choose a new password?")
    audit(desk, "password_reset_sent", subject=str(user["id"]))
    if not dry_run:
        _send_recovery(desk, user["email"])
    desk.report(f"The mail to {user['email']} is on its way.", {"id": user["id"], "action": "password_reset_sent"})


def _send_recovery(desk: Desk, email: str) -> None:
    address, key = desk.access.need("GATEWAY_URL"), desk.access.need("NEXT_PUBLIC_SUPABASE_ANON_KEY")
    try:
        with services.client() as http:
            response = http.post(f"{address}/auth/v1/recover", json={"email": email}, headers={"apikey": key})
    except httpx.HTTPError as error:
        raise Failure(f"The gateway does not answer ({type(error).__name__}). Runbook: service-down") from None
    if response.status_code != _ACCEPTED:
        raise Failure(f"The gateway would not send the mail: {response.status_code} {response.text[:200]}")


def ban(
    who: Who,
    *,
    lift: Annotated[bool, typer.Option("--lift", help="End the ban instead.")] = False,
    duration: Annotated[str, typer.Option(help="Such as 24h; for ever where left out.")] = _FOREVER,
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Shut a user out: no sign-in, no refresh, and running access tokens end within 60 s."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    with looking(desk) as conn:
        user = get_user(conn, who)
    desk.confirm(f"{'Lift the ban of' if lift else 'Ban'} {user['email'] or user['id']}?")
    after = {"banned": not lift, "duration": None if lift else duration, "reason": reason}
    audit(desk, "user_changed", subject=str(user["id"]), after=after)
    if not dry_run:
        body = {"ban_duration": "none" if lift else duration}
        services.auth_admin(desk, "PUT", f"/admin/users/{user['id']}", body=body)
    desk.report(f"{user['email']} is {'no longer ' if lift else ''}banned.", {"id": user["id"], "banned": not lift})


def delete(
    who: Who,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Return once every service has erased its part.")] = False,
    wait_s: Annotated[int, typer.Option(help="How long to wait at most.")] = 60,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a user and all that is theirs, in every service and at Stripe. There is no way back."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    with looking(desk) as conn:
        user = find_user(conn, who)
        if user is None and (erasure := _erasure(conn, who)) is not None:
            _tell_erasure(desk, erasure)
            return
        user = user or get_user(conn, who)
    desk.confirm(f"Delete {user['email'] or user['id']} and all their data for ever?")
    with acting(desk, "user_deleted", subject=str(user["id"])) as act:
        act.conn.execute("DELETE FROM auth.users WHERE id = %s", (user["id"],))
    if not wait or dry_run:
        desk.report(f"{user['id']} is deleted; the services erase their parts.", {"id": user["id"], "deleted": True})
        return
    _tell_erasure(desk, _await_erasure(desk, str(user["id"]), wait_s))


def _await_erasure(desk: Desk, user_id: str, wait_s: int) -> dict[str, Any]:
    deadline = time.monotonic() + wait_s
    while True:
        with looking(desk) as conn:
            erasure = _erasure(conn, user_id) or {}
        if erasure.get("is_complete"):
            return erasure
        if time.monotonic() > deadline:
            missing = [name for name in ("billing", "metering", "agents") if not erasure.get(f"{name}_at")]
            raise Failure(f"After {wait_s} s still not erased by {', '.join(missing)}. Runbook: delete-user-data")
        time.sleep(_POLL_S)


def _tell_erasure(desk: Desk, erasure: dict[str, Any]) -> None:
    desk.answer(erasure)
    done = [name for name in ("billing", "metering", "agents") if erasure[f"{name}_at"]]
    desk.say(f"{erasure['user_id']} is deleted and erased by {', '.join(done) or 'nobody yet'}.")
    if not erasure["is_complete"]:
        leave(NOT_WELL)


def _erasure(conn: Connection, user_id: str) -> dict[str, Any] | None:
    return conn.execute(
        """
        SELECT user_id, requested_at, billing_at, metering_at, agents_at,
               (billing_at IS NOT NULL AND metering_at IS NOT NULL AND agents_at IS NOT NULL) AS is_complete
        FROM gateway.erasures WHERE user_id::text = %s
        """,
        (user_id,),
    ).fetchone()


def find_user(conn: Connection, who: str) -> dict[str, Any] | None:
    return conn.execute(
        """
        SELECT u.id, u.email, u.email_confirmed_at, u.created_at, u.last_sign_in_at,
               coalesce(u.banned_until > now(), false) AS is_banned, p.name,
               coalesce(p.premium_features -> 'admin' = 'true', false) AS is_admin,
               p.subscription_tier AS tier, p.subscription_status AS status, p.stripe_customer_id, p.premium_features
        FROM auth.users u JOIN user_profiles p ON p.user_id = u.id
        WHERE u.deleted_at IS NULL AND (u.id::text = %(who)s OR u.email = lower(%(who)s))
        """,
        {"who": who},
    ).fetchone()


def get_user(conn: Connection, who: str) -> dict[str, Any]:
    """Raises NotFound."""
    user = find_user(conn, who)
    if user is None:
        raise NotFound(f"There is no user {who}. `venture users find` searches.")
    return user


def check_uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Failure(f"{text!r} is not an id.") from None
