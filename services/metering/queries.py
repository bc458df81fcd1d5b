"""All SQL of metering. Lock order everywhere: one hold, then its user's counters by metric."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from libs.common.database import Connection, Record
from libs.common.events.gateway import EntitlementsChanged
from services.metering.domain import Account, Amounts, Hold, HoldState, Metric, Period, Transition, Usage

UNLIMITED: Final = 2**63 - 1

Limits = Mapping[str, int]


# Holds ---------------------------------------------------------------------------------------------------------------


async def insert_hold(
    conn: Connection, *, hold_id: UUID, user_id: str, amounts: Amounts, is_confirmed: bool
) -> tuple[Hold, Account] | None:
    """Claim the id for this ask; None if the id is taken. Unconfirmed holds live 60 s, confirmed ones 24 h."""
    row = await conn.fetchrow(
        """
        INSERT INTO metering.holds (id, user_id, amounts, period_start, period_end, confirmed_at, expires_at)
        VALUES ($1, $2, $3, metering.period_start(now()), metering.period_end(now()),
            CASE WHEN $4 THEN now() END, now() + CASE WHEN $4 THEN interval '24 hours' ELSE interval '60 seconds' END)
        -- ON CONFLICT closes the race of two asks with one id: the second waits, then finds the first's row.
        ON CONFLICT (id) DO NOTHING
        RETURNING id, user_id, amounts, state, period_start, period_end, confirmed_at, expires_at, settled_at,
            (SELECT e.tier FROM metering.entitlements AS e WHERE e.user_id = holds.user_id) AS tier,
            (SELECT e.erased_as FROM metering.entitlements AS e WHERE e.user_id = holds.user_id) AS erased_as
        """,
        hold_id,
        user_id,
        {metric.value: amount for metric, amount in amounts.items()},
        is_confirmed,
    )
    return None if row is None else (_hold(row), _account(row))


async def lock_hold(conn: Connection, hold_id: UUID) -> Hold | None:
    row = await conn.fetchrow(
        """
        SELECT id, user_id, amounts, state, period_start, period_end, confirmed_at, expires_at, settled_at
        FROM metering.holds WHERE id = $1
        -- FOR UPDATE: confirmation, settlement, release and sweep of one hold come one after the other.
        FOR UPDATE
        """,
        hold_id,
    )
    return None if row is None else _hold(row)


async def lease_expired_hold(conn: Connection, *, unconfirmed_for_s: float | None) -> Hold | None:
    """The most overdue hold nobody works on. Unconfirmed ones only if overdue by so much; None leaves them alone."""
    row = await conn.fetchrow(
        """
        SELECT id, user_id, amounts, state, period_start, period_end, confirmed_at, expires_at, settled_at
        FROM metering.holds
        WHERE state = 'held' AND expires_at <= now()
            AND (confirmed_at IS NOT NULL OR expires_at <= now() - make_interval(secs => $1))
        ORDER BY expires_at
        LIMIT 1
        -- SKIP LOCKED: several sweepers share the work, and one never waits for a hold that is just being settled.
        FOR UPDATE SKIP LOCKED
        """,
        unconfirmed_for_s,
    )
    return None if row is None else _hold(row)


async def renew_hold(conn: Connection, hold_id: UUID) -> Hold:
    """Open a locked hold afresh, in the period of now."""
    row = await conn.fetchrow(
        """
        UPDATE metering.holds
        SET state = 'held', ended_at = NULL, expires_at = now() + interval '60 seconds',
            period_start = metering.period_start(now()), period_end = metering.period_end(now())
        WHERE id = $1
        RETURNING id, user_id, amounts, state, period_start, period_end, confirmed_at, expires_at, settled_at
        """,
        hold_id,
    )
    if row is None:
        raise RuntimeError(f"the hold {hold_id} is gone although it is locked")
    return _hold(row)


async def mark_hold(conn: Connection, hold_id: UUID, transition: Transition) -> None:
    await conn.execute(
        """
        UPDATE metering.holds
        SET state = $2,
            confirmed_at = CASE WHEN $3 THEN now() ELSE confirmed_at END,
            expires_at = CASE WHEN $3 THEN now() + interval '24 hours' ELSE expires_at END,
            settled_at = CASE WHEN $4 THEN now() ELSE settled_at END,
            ended_at = CASE WHEN $2 = 'held' THEN NULL ELSE coalesce(ended_at, now()) END
        WHERE id = $1
        """,
        hold_id,
        transition.state.value,
        transition.confirms,
        transition.books,
    )


async def oldest_overdue_s(conn: Connection) -> float:
    """For how long the most overdue open hold has been expired, 0 if there is none."""
    age = await conn.fetchval(
        "SELECT extract(epoch FROM now() - min(expires_at)) FROM metering.holds WHERE state = 'held'"
    )
    return max(0.0, float(age or 0))


# Counters ------------------------------------------------------------------------------------------------------------


async def take_quota(conn: Connection, hold: Hold, limits: Limits) -> set[Metric]:
    """Hold each amount that fits under its limit; return the metrics that did. Never read-then-write."""
    metrics = sorted(hold.amounts)
    rows = await conn.fetch(
        """
        WITH asked AS (
            SELECT metric, amount, ceiling
            FROM unnest($4::text[], $5::bigint[], $6::bigint[]) AS a(metric, amount, ceiling)
        )
        INSERT INTO usage_metrics AS u (user_id, metric_type, period_start, period_end, held_value)
        SELECT $1, metric, $2, $3, amount FROM asked WHERE amount <= ceiling ORDER BY metric
        -- ON CONFLICT locks the counter and decides on its newest value: asks at the same time pass one by one, also
        -- when the row is just being made, or deleted by an operator.
        ON CONFLICT (user_id, metric_type, period_start) DO UPDATE
        SET held_value = u.held_value + EXCLUDED.held_value, updated_at = now()
        WHERE u.metric_value + u.held_value + EXCLUDED.held_value
            <= (SELECT ceiling FROM asked WHERE metric = EXCLUDED.metric_type)
        RETURNING u.metric_type
        """,
        hold.user_id,
        hold.period.start,
        hold.period.end,
        metrics,
        [hold.amounts[metric] for metric in metrics],
        [limits.get(metric, UNLIMITED) for metric in metrics],
    )
    return {Metric(row["metric_type"]) for row in rows}


async def change_counters(conn: Connection, hold: Hold, *, used: Amounts, held: Amounts) -> dict[Metric, int]:
    """Add to what is used (never negative) and held (of either sign) in the hold's period; return what is used now."""
    metrics = sorted(used.keys() | held.keys())
    if not metrics:
        return {}
    rows = await conn.fetch(
        """
        WITH change AS (
            SELECT metric, used, held FROM unnest($4::text[], $5::bigint[], $6::bigint[]) AS c(metric, used, held)
        )
        INSERT INTO usage_metrics AS u (user_id, metric_type, period_start, period_end, metric_value, held_value)
        SELECT $1, metric, $2, $3, used, greatest(held, 0) FROM change ORDER BY metric
        -- ON CONFLICT: the counter may be made or deleted by somebody else at this moment; no change is lost by that.
        ON CONFLICT (user_id, metric_type, period_start) DO UPDATE
        SET metric_value = u.metric_value + EXCLUDED.metric_value,
            held_value = u.held_value + (SELECT held FROM change WHERE metric = EXCLUDED.metric_type),
            updated_at = now()
        RETURNING u.metric_type, u.metric_value
        """,
        hold.user_id,
        hold.period.start,
        hold.period.end,
        metrics,
        [used.get(metric, 0) for metric in metrics],
        [held.get(metric, 0) for metric in metrics],
    )
    return {Metric(row["metric_type"]): row["metric_value"] for row in rows}


async def find_usage(conn: Connection, *, user_id: str, period: Period) -> dict[Metric, Usage]:
    """Counters of one user and period; a metric without a row was never used in it."""
    rows = await conn.fetch(
        """
        SELECT metric_type, metric_value, held_value FROM usage_metrics WHERE user_id = $1 AND period_start = $2
        """,
        user_id,
        period.start,
    )
    return {Metric(row["metric_type"]): Usage(used=row["metric_value"], held=row["held_value"]) for row in rows}


async def delete_counters(conn: Connection, *, user_id: str) -> None:
    """Give the current period's quota back. The table's trigger books the adjustment and keeps what is held."""
    await conn.execute(
        "DELETE FROM usage_metrics WHERE user_id = $1 AND period_start = metering.period_start(now())", user_id
    )


# Ledger and thresholds -----------------------------------------------------------------------------------------------


async def insert_usage(
    conn: Connection, run_id: UUID, used: Amounts, *, user_id: str, period: Period, attributes: Mapping[str, Any]
) -> dict[Metric, int]:
    """Book what a run used, each metric once for ever; return what was booked now.

    The key is the run's id, not the message's: a fact told twice in two messages is still one fact.
    """
    metrics = sorted(metric for metric, amount in used.items() if amount)
    rows = await conn.fetch(
        """
        INSERT INTO metering.usage_ledger
            (source, event_id, user_id, metric_type, amount, kind, period_start, attributes)
        SELECT 'agents.run', $1 || ':' || metric, $2, metric, amount, 'usage', $3, $4
        FROM unnest($5::text[], $6::bigint[]) AS booked(metric, amount) ORDER BY metric
        -- ON CONFLICT: whoever delivers the same fact again, in whatever envelope, counts it no second time.
        ON CONFLICT (source, event_id) DO NOTHING
        RETURNING metric_type, amount
        """,
        str(run_id),
        user_id,
        period.start,
        attributes,
        metrics,
        [used[metric] for metric in metrics],
    )
    return {Metric(row["metric_type"]): row["amount"] for row in rows}


async def insert_threshold(conn: Connection, hold: Hold, metric: Metric, percent: int) -> bool:
    """Mark a threshold as told; False if it has been told before in this period."""
    told = await conn.execute(
        """
        INSERT INTO metering.thresholds (user_id, metric_type, period_start, percent) VALUES ($1, $2, $3, $4)
        -- ON CONFLICT: of two settlements that cross it at once, one tells.
        ON CONFLICT (user_id, metric_type, period_start, percent) DO NOTHING
        """,
        hold.user_id,
        metric.value,
        hold.period.start,
        percent,
    )
    return told == 1


# Accounts ------------------------------------------------------------------------------------------------------------


async def find_account(conn: Connection, user_id: str) -> Account:
    """What the gateway said last; a user nobody spoke of yet has the free tier."""
    row = await conn.fetchrow("SELECT tier, erased_as FROM metering.entitlements WHERE user_id = $1", user_id)
    return Account() if row is None else _account(row)


async def get_current_period(conn: Connection) -> Period:
    start, end = await conn.fetchval("SELECT ARRAY[metering.period_start(now()), metering.period_end(now())]")
    return Period(start=start, end=end)


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


def _hold(row: Record) -> Hold:
    return Hold(
        id=UUID(int=row["id"].int),
        user_id=row["user_id"],
        amounts={Metric(name): int(amount) for name, amount in row["amounts"].items()},
        state=HoldState(row["state"]),
        period=Period(start=row["period_start"], end=row["period_end"]),
        expires_at=row["expires_at"],
        is_confirmed=row["confirmed_at"] is not None,
        is_booked=row["settled_at"] is not None,
    )


def _account(row: Record) -> Account:
    return Account(tier=row["tier"] or "free", erased_as=row["erased_as"])


async def count_users_at_limits(conn: Connection) -> int:
    """Users who have used up some limit in the current period."""
    return await conn.fetchval(
        """
        SELECT count(DISTINCT t.user_id) FROM metering.thresholds AS t
        JOIN public.usage_metrics AS u USING (user_id, metric_type, period_start)
        WHERE t.percent = 100 AND u.period_start <= now() AND now() < u.period_end AND u.metric_value > 0
        """
    )
