"""SQL of accounts: what the gateway said last, and the period that now falls in."""

from collections.abc import Sequence
from datetime import datetime

from libs.common.database import Connection, Record
from libs.common.events.gateway import EntitlementsChanged
from libs.common.plans import Plans
from services.metering.accounts.domain import Account
from services.metering.domain import Period


async def find_accounts(conn: Connection, plans: Plans, user_ids: Sequence[str]) -> dict[str, Account]:
    """Each user's account, with the period of now; one nobody spoke of yet has the free tier."""
    rows = await conn.fetch(
        """
        SELECT u.user_id, coalesce(e.tier, 'free') AS tier, coalesce(e.status, 'active') AS status,
            coalesce(e.features, '{}') AS features, e.erased_as, p.period_start, p.period_end, now() AS read_at,
            EXISTS (SELECT FROM metering.grants AS g WHERE g.user_id = u.user_id) AS has_grants
        FROM unnest($1::text[]) AS u(user_id)
        LEFT JOIN metering.entitlements AS e ON e.user_id = u.user_id
        CROSS JOIN LATERAL metering.period_at(
            now(), CASE WHEN e.tier = ANY($2) THEN e.period_start END, e.period_end
        ) AS p
        """,
        list(user_ids),
        plans.tiers_by_subscription,
    )
    return {row["user_id"]: account_of(row) for row in rows}


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


async def insert_threshold(
    conn: Connection, *, user_id: str, metric: str, period_start: datetime, percent: int
) -> bool:
    """Mark a threshold as told; False if it has been told before in this period."""
    told = await conn.execute(
        """
        INSERT INTO metering.thresholds (user_id, metric_type, period_start, percent) VALUES ($1, $2, $3, $4)
        -- ON CONFLICT: of two settlements that cross it at once, one tells.
        ON CONFLICT (user_id, metric_type, period_start, percent) DO NOTHING
        """,
        user_id,
        metric,
        period_start,
        percent,
    )
    return told == 1


def account_of(row: Record) -> Account:
    return Account(
        period=Period(start=row["period_start"], end=row["period_end"]),
        read_at=row["read_at"],
        tier=row["tier"],
        status=row["status"],
        features=row["features"],
        erased_as=row["erased_as"],
        has_grants=row["has_grants"],
    )
