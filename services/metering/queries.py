"""SQL of holds and counters. Lock order everywhere: holds by id, then counters by user, metric and period."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from libs.common.database import Connection, Record
from services.metering.columns import hold_columns, new_hold
from services.metering.domain import Amounts, Ask, Hold, HoldState, Period, Transition, Usage

UNLIMITED: Final = 2**63 - 1

Counter = tuple[str, str, datetime]
"""User, metric, start of the period: what names a counter."""


class Taking(NamedTuple):
    """`ceiling` is None where there is no limit."""

    period_end: datetime
    amount: int
    ceiling: int | None


# Holds ---------------------------------------------------------------------------------------------------------------


async def insert_holds(conn: Connection, asks: Sequence[tuple[Ask, Period]]) -> dict[UUID, Hold]:
    """Claim the ids for these asks, but those that are taken. Unconfirmed holds live 60 s, confirmed ones 24 h."""
    rows = await conn.fetch(
        """
        INSERT INTO metering.holds (id, user_id, amounts, period_start, period_end, confirmed_at, expires_at)
        SELECT id, user_id, ($4::jsonb[])[kind], ($6::timestamptz[])[kind], ($7::timestamptz[])[kind],
            CASE WHEN ($5::boolean[])[kind] THEN now() END,
            now() + CASE WHEN ($5::boolean[])[kind] THEN interval '24 hours' ELSE interval '60 seconds' END
        FROM (
            SELECT id, user_id, get_byte($3::bytea, place::integer - 1) + 1 AS kind
            FROM unnest($1::uuid[], string_to_array($2::text, ',')) WITH ORDINALITY AS a(id, user_id, place)
        ) AS asked
        ORDER BY id
        -- ON CONFLICT closes the race of two asks with one id: the second waits, then finds the first's row.
        ON CONFLICT (id) DO NOTHING
        RETURNING id, created_at, expires_at
        """,
        *hold_columns(asks),
    )
    made = {row["id"]: row for row in rows}
    return {
        ask.hold_id: new_hold(ask, period, row["created_at"], row["expires_at"])
        for ask, period in asks
        if (row := made.get(ask.hold_id)) is not None
    }


async def delete_holds(conn: Connection, hold_ids: Sequence[UUID]) -> None:
    """Take back claims of this transaction that were refused."""
    await conn.execute("DELETE FROM metering.holds WHERE id = ANY($1)", list(hold_ids))


async def lock_holds(conn: Connection, hold_ids: Sequence[UUID]) -> dict[UUID, Hold]:
    rows = await conn.fetch(
        """
        SELECT id, user_id, amounts, state, period_start, period_end, created_at, confirmed_at, expires_at, settled_at
        FROM metering.holds WHERE id = ANY($1) ORDER BY id
        -- FOR UPDATE: confirmation, settlement, release and sweep of one hold come one after the other.
        FOR UPDATE
        """,
        list(hold_ids),
    )
    return {hold.id: hold for hold in map(_hold, rows)}


async def lock_hold(conn: Connection, hold_id: UUID) -> Hold | None:
    return (await lock_holds(conn, [hold_id])).get(hold_id)


async def lease_expired_hold(
    conn: Connection, *, unconfirmed_for_s: float | None, but_of: Sequence[str] = ()
) -> Hold | None:
    """The most overdue hold nobody works on, but for those of some users.

    Unconfirmed ones only if overdue by so much; None leaves them alone.
    """
    row = await conn.fetchrow(
        """
        SELECT id, user_id, amounts, state, period_start, period_end, created_at, confirmed_at, expires_at, settled_at
        FROM metering.holds
        WHERE state = 'held' AND expires_at <= now()
            AND (confirmed_at IS NOT NULL OR expires_at <= now() - make_interval(secs => $1))
            AND user_id <> ALL($2)
        ORDER BY expires_at
        LIMIT 1
        -- SKIP LOCKED: several sweepers share the work, and one never waits for a hold that is just being settled.
        FOR UPDATE SKIP LOCKED
        """,
        unconfirmed_for_s,
        list(but_of),
    )
    return None if row is None else _hold(row)


async def renew_holds(conn: Connection, holds: Sequence[tuple[UUID, Period]]) -> dict[UUID, Hold]:
    """Open locked holds afresh, in the period of now."""
    rows = await conn.fetch(
        """
        UPDATE metering.holds AS h
        SET state = 'held', ended_at = NULL, created_at = now(), expires_at = now() + interval '60 seconds',
            period_start = r.period_start, period_end = r.period_end
        FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[]) AS r(id, period_start, period_end)
        WHERE h.id = r.id
        RETURNING h.id, h.user_id, h.amounts, h.state, h.period_start, h.period_end, h.created_at, h.confirmed_at,
            h.expires_at, h.settled_at
        """,
        [hold_id for hold_id, _ in holds],
        [period.start for _, period in holds],
        [period.end for _, period in holds],
    )
    return {hold.id: hold for hold in map(_hold, rows)}


async def extend_hold(conn: Connection, hold_id: UUID, amounts: Amounts) -> Hold:
    """Let a locked hold hold these amounts, and live as long as a new one if that is longer."""
    row = await conn.fetchrow(
        """
        UPDATE metering.holds
        SET amounts = amounts || $2::jsonb, expires_at = greatest(expires_at, now() + interval '60 seconds')
        WHERE id = $1
        RETURNING id, user_id, amounts, state, period_start, period_end, created_at, confirmed_at, expires_at,
            settled_at
        """,
        hold_id,
        {str(metric): amount for metric, amount in amounts.items()},
    )
    if row is None:
        raise RuntimeError(f"the hold {hold_id} is gone although it is locked")
    return _hold(row)


async def confirm_open_holds(conn: Connection, runs: Mapping[UUID, UUID]) -> set[UUID]:
    """Let the holds of these runs that are held for their users live as long as a run may; return which."""
    rows = await conn.fetch(
        """
        WITH locked AS (
            SELECT h.id, h.state = 'held' AND h.confirmed_at IS NULL AND h.user_id = run.user_id AS is_open
            FROM metering.holds AS h JOIN unnest($1::uuid[], $2::text[]) AS run(id, user_id) USING (id)
            ORDER BY h.id
            -- FOR UPDATE, also of those that are not open: whoever looks at them next locks nothing out of order.
            FOR UPDATE OF h
        )
        UPDATE metering.holds AS h SET confirmed_at = now(), expires_at = now() + interval '24 hours'
        FROM locked WHERE h.id = locked.id AND locked.is_open
        RETURNING h.id
        """,
        list(runs),
        [str(user_id) for user_id in runs.values()],
    )
    return {row["id"] for row in rows}


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


async def make_counters(conn: Connection, counters: Mapping[Counter, datetime]) -> None:
    """Make the counters that are not there yet, with the ends of their periods, so that there is a row to lock."""
    keys = sorted(counters)
    await conn.execute(
        """
        INSERT INTO usage_metrics (user_id, metric_type, period_start, period_end)
        SELECT user_id, metric, period_start, period_end
        FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[])
            AS k(user_id, metric, period_start, period_end)
        -- ON CONFLICT: somebody else may be making it at this moment; one of us does.
        ON CONFLICT (user_id, metric_type, period_start) DO NOTHING
        """,
        [key[0] for key in keys],
        [key[1] for key in keys],
        [key[2] for key in keys],
        [counters[key] for key in keys],
    )


async def lock_counters(conn: Connection, keys: Sequence[Counter]) -> dict[Counter, Usage]:
    """What is used and held, with the rows locked; a counter nobody used yet has no row, and nothing to lock."""
    rows = await conn.fetch(
        """
        SELECT c.user_id, c.metric_type, c.period_start, c.metric_value, c.held_value
        FROM usage_metrics AS c
        JOIN unnest($1::text[], $2::text[], $3::timestamptz[]) AS k(user_id, metric, period_start)
            ON (c.user_id, c.metric_type, c.period_start) = (k.user_id, k.metric, k.period_start)
        ORDER BY c.user_id, c.metric_type, c.period_start
        -- FOR UPDATE in one order for all: what is decided on stays true until it is written, and nobody deadlocks.
        FOR UPDATE OF c
        """,
        [key[0] for key in keys],
        [key[1] for key in keys],
        [key[2] for key in keys],
    )
    return {
        (row["user_id"], row["metric_type"], row["period_start"]): Usage(
            used=row["metric_value"], held=row["held_value"]
        )
        for row in rows
    }


async def take_quota(conn: Connection, takings: Mapping[Counter, Taking]) -> set[Counter]:
    """Hold each amount that fits under its ceiling; return the counters it was taken from.

    This conditional statement is what decides: a counter that was made since the rows were locked can refuse. No
    user's metric may be named in two periods.
    """
    keys = sorted(takings)
    rows = await conn.fetch(
        """
        INSERT INTO usage_metrics AS u (user_id, metric_type, period_start, period_end, held_value)
        SELECT user_id, metric, period_start, period_end, amount
        FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::bigint[])
            AS a(user_id, metric, period_start, period_end, amount)
        WHERE amount <= coalesce($6::jsonb ->> (user_id || ' ' || metric), $6::jsonb ->> metric)::bigint
        ORDER BY user_id, metric, period_start
        -- ON CONFLICT locks the counter and decides on its newest value: asks at the same time pass one by one, also
        -- when the row is just being made, or deleted by an operator. The ceilings are looked up in one value: in
        -- rows, each counter would search through all of them.
        ON CONFLICT (user_id, metric_type, period_start) DO UPDATE
        SET held_value = u.held_value + EXCLUDED.held_value, updated_at = now()
        WHERE u.metric_value + u.held_value + EXCLUDED.held_value
            <= coalesce(
                $6::jsonb ->> (EXCLUDED.user_id || ' ' || EXCLUDED.metric_type), $6::jsonb ->> EXCLUDED.metric_type
            )::bigint
        RETURNING u.user_id, u.metric_type, u.period_start
        """,
        [key[0] for key in keys],
        [key[1] for key in keys],
        [key[2] for key in keys],
        [takings[key].period_end for key in keys],
        [takings[key].amount for key in keys],
        ceilings_of(keys, takings),
    )
    return {(row["user_id"], row["metric_type"], row["period_start"]) for row in rows}


def ceilings_of(keys: Sequence[Counter], takings: Mapping[Counter, Taking]) -> dict[str, int]:
    """Ceilings of sorted counters: by metric what the first of it has, by user and metric where it is another.

    Raises ValueError if a user's metric is named in two periods, whose ceilings may differ.
    """
    ceilings: dict[str, int] = {}
    before = "", ""
    for key in keys:
        user_id, metric, _ = key
        ceiling = takings[key].ceiling
        if ceiling is None:
            ceiling = UNLIMITED
        if ceilings.setdefault(str(metric), ceiling) != ceiling:
            ceilings[f"{user_id} {metric}"] = ceiling
        if (user_id, metric) == before:
            raise ValueError("a user's metric is named in two periods")
        before = user_id, metric
    return ceilings


async def give_quota_back(conn: Connection, amounts: Mapping[Counter, int]) -> None:
    """Undo what was just taken, in the same transaction."""
    await conn.execute(
        """
        UPDATE usage_metrics AS c SET held_value = c.held_value - b.amount
        FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[]) AS b(user_id, metric, period_start, amount)
        WHERE (c.user_id, c.metric_type, c.period_start) = (b.user_id, b.metric, b.period_start)
        """,
        [key[0] for key in amounts],
        [key[1] for key in amounts],
        [key[2] for key in amounts],
        list(amounts.values()),
    )


async def change_counters(
    conn: Connection, hold: Hold, *, used: Amounts | None = None, held: Amounts | None = None
) -> dict[str, int]:
    """Add to what is used and held, of either sign, in the hold's period; return what is used now."""
    return await change_usage(conn, user_id=hold.user_id, period=hold.period, used=used or {}, held=held or {})


async def change_usage(
    conn: Connection, *, user_id: str, period: Period, used: Amounts, held: Amounts
) -> dict[str, int]:
    metrics = sorted(used.keys() | held.keys())
    if not metrics:
        return {}
    rows = await conn.fetch(
        """
        WITH change AS (
            SELECT metric, used, held FROM unnest($4::text[], $5::bigint[], $6::bigint[]) AS c(metric, used, held)
        )
        INSERT INTO usage_metrics AS u (user_id, metric_type, period_start, period_end, metric_value, held_value)
        SELECT $1, metric, $2, $3, greatest(used, 0), greatest(held, 0) FROM change ORDER BY metric
        -- ON CONFLICT: the counter may be made or deleted by somebody else at this moment; no change is lost by that.
        ON CONFLICT (user_id, metric_type, period_start) DO UPDATE
        SET metric_value = u.metric_value + (SELECT used FROM change WHERE metric = EXCLUDED.metric_type),
            held_value = u.held_value + (SELECT held FROM change WHERE metric = EXCLUDED.metric_type),
            updated_at = now()
        RETURNING u.metric_type, u.metric_value
        """,
        user_id,
        period.start,
        period.end,
        metrics,
        [used.get(metric, 0) for metric in metrics],
        [held.get(metric, 0) for metric in metrics],
    )
    return {row["metric_type"]: row["metric_value"] for row in rows}


async def find_usage(conn: Connection, *, user_id: str, period: Period) -> dict[str, Usage]:
    """Counters of one user and period; a metric without a row was never used in it."""
    rows = await conn.fetch(
        """
        SELECT metric_type, metric_value, held_value FROM usage_metrics WHERE user_id = $1 AND period_start = $2
        """,
        user_id,
        period.start,
    )
    return {row["metric_type"]: Usage(used=row["metric_value"], held=row["held_value"]) for row in rows}


async def delete_counters(conn: Connection, *, user_id: str) -> None:
    """Give the current period's quota back. The table's trigger books the adjustment and keeps what is held."""
    await conn.execute("DELETE FROM usage_metrics WHERE user_id = $1 AND period_end > now()", user_id)


async def delete_counters_of_tier(conn: Connection, *, tier: str) -> int:
    """The same for everybody of a tier; return how many counters were given back."""
    return await conn.execute(
        """
        DELETE FROM usage_metrics AS c
        WHERE c.period_end > now()
            AND coalesce((SELECT e.tier FROM metering.entitlements AS e WHERE e.user_id = c.user_id), 'free') = $1
        """,
        tier,
    )


def _hold(row: Record) -> Hold:
    return Hold(
        id=UUID(int=row["id"].int),
        user_id=row["user_id"],
        amounts=dict(row["amounts"]),
        state=HoldState(row["state"]),
        period=Period(start=row["period_start"], end=row["period_end"]),
        expires_at=row["expires_at"],
        created_at=row["created_at"],
        is_confirmed=row["confirmed_at"] is not None,
        is_booked=row["settled_at"] is not None,
    )
