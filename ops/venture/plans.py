"""`venture subscription`, `usage`, `orphans`, `limits`: plans by hand, counters, and who has used a limit up."""

from typing import Annotated, Any, Final

import typer

from libs.common.plans import load_plans
from ops.failure import Failure
from ops.venture import services
from ops.venture.database import acting, audit, looking
from ops.venture.desk import NOT_WELL, AsJson, Desk, DryRun, Reason, Yes, leave
from ops.venture.users import Who, get_user

_STATUSES: Final = ("active", "inactive", "trialing", "past_due", "canceled", "unpaid")


def subscription_commands() -> typer.Typer:
    app = typer.Typer(help="Plans by hand.", no_args_is_help=True)
    app.command("set")(set_subscription)
    app.callback()(_group)
    return app


def usage_commands() -> typer.Typer:
    app = typer.Typer(help="Counters: show, reset, rebuild --verify.", no_args_is_help=True)
    app.command("show")(show_usage)
    app.command("reset")(reset_usage)
    app.command("rebuild")(rebuild_usage)
    return app


def limits_commands() -> typer.Typer:
    app = typer.Typer(help="Who is near or at a limit.", no_args_is_help=True)
    app.command("who")(who_is_limited)
    app.callback()(_group)
    return app


def _group() -> None:
    """Keep the command's own name even where it is the only one."""


def set_subscription(
    who: Who,
    *,
    tier: Annotated[str | None, typer.Option(help="free, pro, pro+, enterprise.")] = None,
    status: Annotated[str | None, typer.Option(help=", ".join(_STATUSES))] = None,
    customer: Annotated[str | None, typer.Option(help="Stripe's customer, cus_…")] = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Set a user's plan by hand; limits, caches and the user's open pages follow within 5 s."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    if tier is not None and tier not in load_plans().tiers:
        raise Failure(f"There is no plan {tier!r}: {', '.join(load_plans().tiers)}.")
    if status is not None and status not in _STATUSES:
        raise Failure(f"{status!r} is no status: {', '.join(_STATUSES)}.")
    if tier is None and status is None and customer is None:
        raise Failure("Say what to set: --tier, --status or --customer.")
    if tier is not None and status is None:
        status = "inactive" if tier == "free" else "active"
    desk.confirm(f"Set {who} to tier {tier or 'as is'}, status {status or 'as is'}?")
    with acting(desk, "subscription_set") as act:
        user = get_user(act.conn, who)
        act.subject = str(user["id"])
        act.before = {name: user[name] for name in ("tier", "status", "stripe_customer_id")}
        act.after = (
            act.conn.execute(
                """
            UPDATE user_profiles SET subscription_tier = coalesce(%(tier)s, subscription_tier),
                subscription_status = coalesce(%(status)s, subscription_status),
                stripe_customer_id = coalesce(%(customer)s, stripe_customer_id)
            WHERE user_id = %(id)s
            RETURNING subscription_tier AS tier, subscription_status AS status, stripe_customer_id
            """,
                {"tier": tier, "status": status, "customer": customer, "id": user["id"]},
            ).fetchone()
            or {}
        )
        after = dict(act.after)
        act.after["reason"] = reason
    desk.report(f"{who} is on {after['tier']} ({after['status']}).", {"id": user["id"], **after})


def show_usage(
    who: Annotated[str | None, typer.Argument(help="Id or address; without: the largest counters.")] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 10,
    as_json: AsJson = False,
) -> None:
    """Counters with their limits, largest first."""
    desk = Desk(as_json=as_json)
    with looking(desk) as conn:
        user_id = str(get_user(conn, who)["id"]) if who else None
        rows = conn.execute(
            """
            SELECT um.user_id, um.metric_type, um.metric_value AS used, um.held_value AS held, um.period_start,
                   up.subscription_tier AS tier
            FROM usage_metrics um LEFT JOIN user_profiles up ON um.user_id = up.user_id::text
            WHERE %(user)s::text IS NULL OR um.user_id = %(user)s
            ORDER BY um.metric_value DESC LIMIT %(limit)s
            """,
            {"user": user_id, "limit": limit},
        ).fetchall()
    desk.table([_with_limit(row) for row in rows], columns=(*_USAGE, "limit"), empty="Nothing was used.")


_USAGE: Final = ("user_id", "tier", "metric_type", "used", "held", "period_start")


def _with_limit(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "limit": load_plans().tier(row["tier"] or "free").limits.get(row["metric_type"])}


def reset_usage(
    who: Annotated[str | None, typer.Argument(help="Id or address.")] = None,
    *,
    tier: Annotated[str | None, typer.Option(help="Everybody on this plan instead.")] = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give quota back. The ledger books the opposite amount; what open runs hold stays held."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    if (who is None) == (tier is None):
        raise Failure("Name one user, or --tier for everybody on a plan.")
    desk.confirm(f"Reset the usage of {who or f'everybody on {tier}'}?")
    with acting(desk, "usage_reset", subject=f"tier:{tier}") as act:
        if who is not None:
            act.subject = str(get_user(act.conn, who)["id"])
            rows = act.conn.execute(
                """DELETE FROM usage_metrics WHERE user_id = %s AND metric_value > 0
                   RETURNING user_id, metric_type, metric_value""",
                (act.subject,),
            ).fetchall()
        else:
            rows = act.conn.execute(
                """
                DELETE FROM usage_metrics um USING user_profiles up
                WHERE um.user_id = up.user_id::text AND up.subscription_tier = %s AND um.metric_value > 0
                RETURNING um.user_id, um.metric_type, um.metric_value
                """,
                (tier,),
            ).fetchall()
        act.before = {"counters": rows[:100]}
        act.after = {"counters_reset": len(rows), "reason": reason}
    desk.report(f"{len(rows)} counters were given back.", {"counters": rows})


def rebuild_usage(
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Only compare; exit 1 if they differ.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Compare counters with the ledger and held amounts with open holds; without --verify work them out anew."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    with looking(desk) as conn:
        rows = conn.execute(
            """SELECT user_id, metric_type, period_start, counted, booked, held, open FROM metering.drift
               ORDER BY user_id, metric_type"""
        ).fetchall()
    if not verify:
        desk.confirm(f"Work all counters out anew from the ledger? {len(rows)} differ.")
        audit(desk, "usage_rebuilt", after={"differed": rows[:100]})
        body = {"verify": False}
        told: dict[str, object] = (
            {} if dry_run else services.internal(desk, "metering", "POST", "/internal/admin/rebuild", body=body)
        )
        desk.report(f"{len(rows)} counters were put right.", {"differed": rows, **told})
        return
    columns = ("user_id", "metric_type", "period_start", "counted", "booked", "held", "open")
    desk.table(rows, columns=columns, empty="Counters and ledger are equal.")
    if rows:
        leave(NOT_WELL)


def orphans(*, as_json: AsJson = False) -> None:
    """Rows of users who do not exist: runs and background events without a profile."""
    desk = Desk(as_json=as_json)
    with looking(desk) as conn:
        rows = conn.execute(
            """
            SELECT 'agent_runs' AS "table", ar.id::text AS id, ar.user_id, ar.created_at FROM agent_runs ar
            LEFT JOIN user_profiles up ON ar.user_id = up.user_id::text WHERE up.user_id IS NULL
            UNION ALL
            SELECT 'background_events', be.id::text, be.user_id, be.created_at FROM background_events be
            LEFT JOIN user_profiles up ON be.user_id = up.user_id::text WHERE up.user_id IS NULL
            ORDER BY 1, 4
            """
        ).fetchall()
    desk.table(rows, columns=("table", "id", "user_id", "created_at"), empty="No orphans.")
    if rows:
        leave(NOT_WELL)


def who_is_limited(
    *,
    at_percent: Annotated[int, typer.Option("--at", help="From how many percent of a limit on.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Users who have used this month's limits up, or nearly."""
    desk = Desk(as_json=as_json)
    with looking(desk) as conn:
        rows = conn.execute(
            """
            SELECT um.user_id, up.subscription_tier AS tier, um.metric_type, um.metric_value AS used,
                   um.held_value AS held, um.period_end AS resets_at, um.period_start
            FROM usage_metrics um JOIN user_profiles up ON um.user_id = up.user_id::text
            WHERE um.period_start <= now() AND now() < um.period_end ORDER BY um.metric_value DESC
            """
        ).fetchall()
    found = [
        row
        for row in map(_with_limit, rows)
        if row["limit"] is not None and (row["used"] + row["held"]) * 100 >= row["limit"] * at_percent
    ]
    columns = ("user_id", "tier", "metric_type", "used", "held", "limit", "resets_at")
    desk.table(found, columns=columns, empty=f"Nobody is at {at_percent} % of a limit.")
