"""SQL of accounts: what the gateway said last, and the period that now falls in."""

from collections.abc import Sequence
from datetime import datetime

from libs.common.database import Connection, Record
from libs.common.events.gateway import EntitlementsChanged
from libs.common.plans import Plans
from services.metering.accounts.domain import Account
from services.metering.columns import joined
from services.metering.domain import Period

Threshold = tuple[str, str, datetime, int]
"""User, metric, start of the period, percent."""


async def find_accounts(conn: Connection, plans: Plans, user_ids: Sequence[str]) -> dict[str, Account]:
    """Each user's account, with the period of now; one nobody spoke of yet has the free tier.

    Users of whom the same is said share one row and one Account: that is nearly everybody.
    """
    rows = await conn.fetch(
        """
        SELECT string_agg(user_id, ',') AS user_ids, tier, status, features, erased_as, has_grants, now() AS read_at,
            coalesce(period_start, metering.period_start(now())) AS period_start,
            coalesce(period_end, metering.period_end(now())) AS period_end
        FROM (
            SELECT u.user_id, coalesce(e.tier, 'free') AS tier, coalesce(e.status, 'active') AS status,
                nullif(e.features, '{}') AS features, e.erased_as, own.period_start, own.period_end,
                EXISTS (SELECT FROM metering.grants AS g WHERE g.user_id = u.user_id) AS has_grants
            -- In a sub-SELECT the planner does not see how many there are, and keeps one plan for all batches.
            FROM unnest(string_to_array((SELECT $1::text), ',')) AS u(user_id)
            LEFT JOIN metering.entitlements AS e ON e.user_id = u.user_id
            LEFT JOIN LATERAL (
                -- OFFSET keeps the tier in here: as a condition of the join it is asked after the function was called.
                SELECT p.period_start, p.period_end
                FROM metering.period_at(now(), e.period_start, e.period_end) AS p WHERE e.tier = ANY($2) OFFSET 0
            ) AS own ON true
        ) AS account
        GROUP BY tier, status, features, erased_as, has_grants, account.period_start, account.period_end
        """,
        joined(user_ids),
        plans.tiers_by_subscription,
    )
    return {
        user_id: account for row in rows for account in (account_of(row),) for user_id in row["user_ids"].split(",")
    }


async def get_account(conn: Connection, plans: Plans, user_id: str) -> Account:
    return (await find_accounts(conn, plans, [user_id]))[user_id]


async def get_now(conn: Connection) -> datetime:
    """The transaction's instant, by the database's clock."""
    return await conn.fetchval("SELECT now()")


async def upsert_entitlements(conn: Connection, event: EntitlementsChanged) -> None:
    """Keep the newest version, in whatever order versions come. A deleted account's row has the last one possible."""
    await conn.execute(
        """
        INSERT INTO metering.entitlements AS e
            (user_id, version, tier, status, features, period_start, period_end)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        -- ON CONFLICT with the comparison inside: two versions at once end with the higher one.
        ON CONFLICT (user_id) DO UPDATE
        SET version = EXCLUDED.version, tier = EXCLUDED.tier, status = EXCLUDED.status, features = EXCLUDED.features,
            period_start = EXCLUDED.period_start, period_end = EXCLUDED.period_end, updated_at = now()
        WHERE e.version < EXCLUDED.version
        """,
        str(event.user_id),
        event.version,
        event.tier,
        event.status,
        event.features,
        event.period_start,
        event.period_end,
    )


async def erase_user(conn: Connection, user_id: str) -> None:
    await conn.execute("SELECT metering.erase_user($1)", user_id)


async def insert_thresholds(conn: Connection, thresholds: Sequence[Threshold]) -> set[Threshold]:
    """Mark thresholds as told; return those that had not been told before in their period."""
    ordered = sorted(thresholds)
    rows = await conn.fetch(
        """
        INSERT INTO metering.thresholds (user_id, metric_type, period_start, percent)
        SELECT user_id, metric, period_start, percent
        FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::integer[])
            AS t(user_id, metric, period_start, percent)
        -- ON CONFLICT: of two settlements that cross it at once, one tells.
        ON CONFLICT (user_id, metric_type, period_start, percent) DO NOTHING
        RETURNING user_id, metric_type, period_start, percent
        """,
        *map(list, zip(*ordered, strict=True)),
    )
    return {(row["user_id"], row["metric_type"], row["period_start"], row["percent"]) for row in rows}


async def count_users_at_limits(conn: Connection) -> int:
    """Users who have used up some limit in the current period."""
    return await conn.fetchval(
        """
        SELECT count(DISTINCT t.user_id) FROM metering.thresholds AS t
        JOIN public.usage_metrics AS u USING (user_id, metric_type, period_start)
        WHERE t.percent = 100 AND u.period_start <= now() AND now() < u.period_end AND u.metric_value > 0
        """
    )


def account_of(row: Record) -> Account:
    return Account(
        period=Period(start=row["period_start"], end=row["period_end"]),
        read_at=row["read_at"],
        tier=row["tier"],
        status=row["status"],
        features=row["features"] or {},
        erased_as=row["erased_as"],
        has_grants=row["has_grants"],
    )
