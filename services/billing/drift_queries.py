"""SQL of the comparison with Stripe: runs asked for, our side of the facts, and the drift that was found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from libs.common.database import Connection, Record
from services.billing.drift import Drift

LEASE_S: Final = 120
SETTLING_S: Final = 10
"""How long the profile may lag behind what billing said before that is drift and no message on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One comparison under way; `lease` is its fencing token."""

    id: UUID
    lease: UUID
    is_fixing: bool


async def insert_run(conn: Connection, *, run_id: UUID, is_fixing: bool) -> None:
    await conn.execute(
        "INSERT INTO billing.reconciliations (id, is_fixing) VALUES ($1, $2)",
        run_id,
        is_fixing,
    )


async def insert_nightly_run(conn: Connection, *, run_id: UUID, hour: int) -> None:
    """Ask for tonight's run once its hour (UTC) has come."""
    await conn.execute(
        """
        INSERT INTO billing.reconciliations (id, night) SELECT $1, (now() AT TIME ZONE 'UTC')::date
        WHERE extract(hour FROM now() AT TIME ZONE 'UTC') >= $2
        -- ON CONFLICT: every replica asks for the same night.
        ON CONFLICT (night) DO NOTHING
        """,
        run_id,
        hour,
    )


async def lease_run(conn: Connection) -> Run | None:
    """Take the oldest run that waits, or whose worker died; one at a time over all replicas."""
    row = await conn.fetchrow(
        """
        UPDATE billing.reconciliations SET lease = gen_random_uuid(), started_at = coalesce(started_at, now()),
            leased_until = now() + make_interval(secs => $1)
        WHERE id = (
            SELECT id FROM billing.reconciliations WHERE finished_at IS NULL AND leased_until <= now()
                AND NOT EXISTS (SELECT FROM billing.reconciliations WHERE finished_at IS NULL AND leased_until > now())
            ORDER BY asked_at LIMIT 1
            FOR UPDATE SKIP LOCKED  -- of two replicas that look at once, one takes it
        )
        RETURNING id, lease, is_fixing
        """,
        LEASE_S,
    )
    return Run(**dict(row)) if row is not None else None


async def extend_run(conn: Connection, run: Run, *, counts: Mapping[str, int]) -> bool:
    """Say that the run goes on, and how far it came; False if another worker has taken it over."""
    extended = await conn.fetchval(
        """
        UPDATE billing.reconciliations SET leased_until = now() + make_interval(secs => $3), counts = $4
        WHERE id = $1 AND lease = $2 AND finished_at IS NULL RETURNING id
        """,
        run.id,
        run.lease,
        LEASE_S,
        dict(counts),
    )
    return extended is not None


async def finish_run(conn: Connection, run: Run, *, counts: Mapping[str, int]) -> bool:
    """Close the run, and forget drift that it did not see again. False if the lease was lost."""
    finished = await conn.fetchval(
        """
        UPDATE billing.reconciliations SET finished_at = now(), leased_until = '-infinity', last_error = NULL,
            counts = $3 WHERE id = $1 AND lease = $2 AND finished_at IS NULL RETURNING id
        """,
        run.id,
        run.lease,
        dict(counts),
    )
    if finished is not None:
        await conn.execute("DELETE FROM billing.drift WHERE seen_by <> $1", run.id)
    return finished is not None


async def delete_old_runs(conn: Connection, *, keep_days: int) -> None:
    await conn.execute(
        "DELETE FROM billing.reconciliations WHERE finished_at < now() - make_interval(days => $1)", keep_days
    )


async def postpone_run(conn: Connection, run: Run, *, error: str, pause_s: int) -> None:
    await conn.execute(
        """
        UPDATE billing.reconciliations SET last_error = $3, leased_until = now() + make_interval(secs => $4)
        WHERE id = $1 AND lease = $2
        """,
        run.id,
        run.lease,
        error,
        pause_s,
    )


async def find_run(conn: Connection, run_id: UUID | None) -> Record | None:
    """The run, or the newest one."""
    return await conn.fetchrow(
        """
        SELECT id, is_fixing, asked_at, started_at, finished_at, counts, last_error FROM billing.reconciliations
        WHERE $1::uuid IS NULL OR id = $1 ORDER BY asked_at DESC LIMIT 1
        """,
        run_id,
    )


async def replace_drift(conn: Connection, run: Run, object_id: str, found: Sequence[Drift]) -> None:
    """What differs about the object now; what differed before keeps its `since`."""
    await conn.execute(
        "DELETE FROM billing.drift WHERE object_id = $1 AND what <> ALL($2)", object_id, [one.what for one in found]
    )
    for one in found:
        await conn.execute(
            """
            INSERT INTO billing.drift (object_id, what, ours, theirs, seen_by) VALUES ($1, $2, $3, $4, $5)
            -- ON CONFLICT: seen before; since then it may have grown, but it has not begun anew.
            ON CONFLICT (object_id, what) DO UPDATE
            SET ours = excluded.ours, theirs = excluded.theirs, seen_by = excluded.seen_by, seen_at = now()
            """,
            object_id,
            one.what,
            one.ours,
            one.theirs,
            run.id,
        )


async def find_drift(conn: Connection, *, limit: int) -> list[Record]:
    return await conn.fetch(
        "SELECT object_id, what, ours, theirs, since, seen_at FROM billing.drift ORDER BY since, object_id LIMIT $1",
        limit,
    )


async def count_drift(conn: Connection) -> int:
    return await conn.fetchval("SELECT count(*) FROM billing.drift")


async def count_drift_to_mend(conn: Connection) -> int:
    """Without what no run mends: profiles, an operator's will until somebody says otherwise, and reported usage."""
    return await conn.fetchval("SELECT count(*) FROM billing.drift WHERE what NOT IN ('profile', 'usage')")


async def last_finished_age_s(conn: Connection) -> float | None:
    age = await conn.fetchval("SELECT extract(epoch FROM now() - max(finished_at)) FROM billing.reconciliations")
    return float(age) if age is not None else None


# Our side -----------------------------------------------------------------------------------------------------------


async def find_subscription_facts(conn: Connection, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    rows = await conn.fetch(
        """
        SELECT id, status, tier, price_id, stripe_customer_id, current_period_start, current_period_end, cancel_at,
            cancel_at_period_end, canceled_at, ended_at, trial_end, past_due_since
        FROM billing.subscriptions WHERE id = ANY($1)
        """,
        list(ids),
    )
    return {row["id"]: dict(row) for row in rows}


async def find_invoice_facts(conn: Connection, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    rows = await conn.fetch(
        """
        SELECT id, stripe_customer_id, stripe_subscription_id, number, status, amount_due_minor, amount_paid_minor,
            attempt_count, next_attempt_at, paid_at
        FROM billing.invoices WHERE id = ANY($1)
        """,
        list(ids),
    )
    return {row["id"]: dict(row) for row in rows}


async def find_customer_owners(conn: Connection, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    rows = await conn.fetch(
        "SELECT stripe_customer_id AS id, user_id FROM billing.customers WHERE stripe_customer_id = ANY($1)", list(ids)
    )
    return {row["id"]: dict(row) for row in rows}


async def find_users_with_customer(conn: Connection, users: Sequence[UUID]) -> set[UUID]:
    """Of these users, those who have a customer, or are erased: another customer that names them is no drift."""
    rows = await conn.fetch(
        """
        SELECT user_id FROM billing.customers WHERE user_id = ANY($1) AND stripe_customer_id IS NOT NULL
        UNION SELECT user_id FROM billing.erasures WHERE user_id = ANY($1)
        """,
        list(users),
    )
    return {row["user_id"] for row in rows}


async def find_ids_to_expect(conn: Connection, *, after: str, limit: int) -> list[str]:
    """What we have and Stripe should have, too, page by page: customers, subscriptions, invoices still open."""
    rows = await conn.fetch(
        """
        SELECT id FROM (
            SELECT id FROM billing.subscriptions WHERE id > $1
            UNION ALL
            SELECT stripe_customer_id FROM billing.customers WHERE stripe_customer_id > $1
            UNION ALL
            SELECT id FROM billing.invoices WHERE status = 'open' AND user_id IS NOT NULL AND id > $1
        ) AS known ORDER BY id LIMIT $2
        """,
        after,
        limit,
    )
    return [row["id"] for row in rows]


async def find_in_flight(conn: Connection, ids: Sequence[str]) -> set[str]:
    """Of these objects, those that are about to be fetched again: what differs there is news, not drift."""
    rows = await conn.fetch(
        "SELECT object_id FROM billing.refreshes WHERE object_id = ANY($1) AND done < wanted", list(ids)
    )
    return {row["object_id"] for row in rows}


async def find_erased_customers(conn: Connection, ids: Sequence[str]) -> set[str]:
    rows = await conn.fetch(
        """
        SELECT DISTINCT unnest(stripe_customer_ids) AS id FROM billing.erasures WHERE stripe_customer_ids && $1::text[]
        """,
        list(ids),
    )
    return {row["id"] for row in rows}


# Profiles -----------------------------------------------------------------------------------------------------------


async def upsert_profile(conn: Connection, *, user_id: UUID, version: int, tier: str, status: str) -> None:
    await conn.execute(
        """
        INSERT INTO billing.profiles (user_id, version, tier, status) VALUES ($1, $2, $3, $4)
        -- ON CONFLICT: events overtake one another; the higher version is the profile's later state.
        ON CONFLICT (user_id) DO UPDATE SET version = excluded.version, tier = excluded.tier, status = excluded.status,
            updated_at = now()
        WHERE profiles.version < excluded.version
        """,
        user_id,
        version,
        tier,
        status,
    )


async def find_profile_drift(conn: Connection) -> list[Drift]:
    """Profiles that show another plan than the one Stripe pays for: an operator's hand, or an event that got lost."""
    rows = await conn.fetch(
        """
        SELECT 'user:' || profiles.user_id AS object_id, profiles.tier AS shown_tier, profiles.status AS shown_status,
            coalesce(accounts.tier, 'free') AS tier, coalesce(accounts.status, 'inactive') AS status
        FROM billing.profiles LEFT JOIN billing.accounts USING (user_id)
        WHERE (profiles.tier <> coalesce(accounts.tier, 'free')
                OR (accounts.version > 0 AND profiles.status <> accounts.status))
            AND coalesce(accounts.updated_at, '-infinity') < now() - make_interval(secs => $1)
        ORDER BY 1
        """,
        SETTLING_S,
    )
    return [
        Drift(
            object_id=row["object_id"],
            what="profile",
            ours={"tier": row["shown_tier"], "status": row["shown_status"]},
            theirs={"tier": row["tier"], "status": row["status"]},
        )
        for row in rows
    ]
