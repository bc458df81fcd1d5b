"""All SQL of leasing: which runs go next, to whom they belong meanwhile, and what became of lost ones.

Every decision about time is the database's. Locks are taken in one order, user before run, so leasing, accepting and
erasing never wait for each other in a circle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.agents import RunStarted
from services.agents.runs.domain import MAX_ATTEMPTS, MAX_LESSONS, LeasedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """How many runs of one user may run at once, by tier; `default` where the tier is unknown."""

    by_tier: Mapping[str, int]
    default: int


async def lease_runs(
    conn: Connection, *, caps: Caps, worker: str, lease_s: float, limit: int
) -> list[tuple[LeasedRun, int]]:
    """Lease up to `limit` runs, each with its `run.started` and what is told of it; return them with its number.

    Users are served in the order in which they were served last, one run each before a second one for anybody. One
    statement, which needs no transaction around it. A user's thousand waiting runs count as one user here: the scan
    hops from user to user along the index.
    """
    try:
        rows = await outbox.add_of_rows(
            conn,
            RunStarted,
            """
            WITH RECURSIVE waiting AS (
                (SELECT user_id FROM public.agent_runs WHERE status = 'queued' ORDER BY user_id LIMIT 1)
                UNION ALL
                SELECT (
                    SELECT r.user_id FROM public.agent_runs r
                    WHERE r.status = 'queued' AND r.user_id > w.user_id ORDER BY r.user_id LIMIT 1
                )
                FROM waiting w WHERE w.user_id IS NOT NULL
            ), lost AS (
                SELECT id, user_id, priority, queued_at FROM public.agent_runs
                WHERE status = 'running' AND lease_expires_at <= now()
                  AND attempt - handed_back < $5 AND cancel_requested_at IS NULL
            ), room AS (
                SELECT e.user_id, coalesce(cap.runs, $4) - (
                    SELECT count(*) FROM public.agent_runs r
                    WHERE r.user_id = e.user_id AND r.status = 'running' AND r.lease_expires_at > now()
                ) AS free
                FROM (SELECT user_id FROM waiting WHERE user_id IS NOT NULL UNION SELECT user_id FROM lost) wanting
                JOIN agents.entitlements e USING (user_id)
                JOIN agents.entitlements seen USING (user_id)
                LEFT JOIN unnest($2::text[], $3::int[]) AS cap(tier, runs) ON cap.tier = e.tier
                WHERE coalesce(cap.runs, $4) > (
                    SELECT count(*) FROM public.agent_runs r
                    WHERE r.user_id = e.user_id AND r.status = 'running' AND r.lease_expires_at > now()
                )
                  -- Read again where the row has changed before it was locked, but only of `e`: whoever was served
                  -- since this statement began is left to the next one, which sees what was leased. So the count of
                  -- running runs is final, and the cap holds across all workers.
                  AND e.last_leased_at = seen.last_leased_at
                ORDER BY e.last_leased_at
                LIMIT $6
                -- SKIP LOCKED: another worker is serving that user at this moment; we serve the others.
                FOR NO KEY UPDATE OF e SKIP LOCKED
            ), next AS (
                SELECT n.id, row_number() OVER (
                    PARTITION BY room.user_id ORDER BY n.is_lost DESC, n.priority DESC, n.queued_at, n.id
                ) AS turn, n.queued_at, room.user_id
                FROM room CROSS JOIN LATERAL (
                    (SELECT lost.id, true AS is_lost, lost.priority, lost.queued_at
                     FROM lost WHERE lost.user_id = room.user_id
                     LIMIT greatest(room.free, 0))
                    UNION ALL
                    (SELECT r.id, false, r.priority, r.queued_at
                     FROM public.agent_runs r
                     WHERE r.user_id = room.user_id AND r.status = 'queued'
                     ORDER BY r.priority DESC, r.queued_at, r.id
                     LIMIT greatest(room.free, 0))
                    ORDER BY is_lost DESC, priority DESC, queued_at, id
                    LIMIT greatest(room.free, 0)
                ) n
                ORDER BY turn, n.queued_at
                LIMIT $6
            ), served AS (
                UPDATE agents.entitlements e SET last_leased_at = clock_timestamp()
                WHERE e.user_id IN (SELECT user_id FROM next)
            ), leased AS (
                UPDATE public.agent_runs r
                SET status = 'running', attempt = r.attempt + 1, lease_token = nextval('agents.lease_tokens'),
                    leased_by = $7, lease_expires_at = now() + make_interval(secs => $8),
                    started_at = coalesce(r.started_at, now())
                FROM next
                WHERE r.id = next.id
                  -- Said again because this is read again after waiting for a row: a cancellation or a heartbeat came
                  -- first.
                  AND (r.status = 'queued' OR (r.status = 'running' AND r.lease_expires_at <= now()))
                RETURNING r.id, r.user_id, r.lease_token, r.attempt, r.agent_type, r.task, r.model_requested, r.vibe,
                    r.context, r.profile, r.template_id, r.max_output_tokens, r.traceparent
            ), started AS (
                INSERT INTO agents.run_events (run_id, seq, type, data)
                SELECT id, coalesce((SELECT max(e.seq) FROM agents.run_events e WHERE e.run_id = id), 0) + 1,
                    'run.started', jsonb_build_object('attempt', attempt)
                FROM leased
                RETURNING run_id, seq
            ), done AS (
                SELECT user_id AS subject, traceparent,
                    jsonb_build_object('run_id', id, 'user_id', user_id, 'attempt', attempt) AS data
                FROM leased
            )
            """,
            """
            SELECT l.id, l.user_id, l.lease_token, l.attempt, l.agent_type, l.task, l.model_requested, l.vibe,
                l.context, l.profile, l.template_id, l.max_output_tokens, l.traceparent, started.seq,
                -- What the prompt needs, so that a run that begins asks for nothing more.
                (SELECT e.tier FROM agents.entitlements e WHERE e.user_id = l.user_id) AS tier,
                (SELECT t.instructions FROM public.user_template_customizations t
                 WHERE t.id = l.template_id AND t.user_id = l.user_id) AS template_instructions,
                ARRAY(SELECT f.detail FROM agents.run_feedback f
                      WHERE f.user_id = l.user_id AND f.agent_type = l.agent_type
                        AND f.verdict <> 'approved' AND f.detail IS NOT NULL
                      ORDER BY f.given_at DESC LIMIT $9) AS lessons
            FROM leased l JOIN started ON started.run_id = l.id
            """,
            list(caps.by_tier),
            list(caps.by_tier.values()),
            caps.default,
            MAX_ATTEMPTS,
            limit,
            worker,
            lease_s,
            MAX_LESSONS,
        )
    except asyncpg.UniqueViolationError:
        # In the moment in which its expired lease was taken, a worker still wrote under it: the number is not free.
        return []
    found = [dict(row) for row in rows]
    return [(LeasedRun(**row), seq) for row in found for seq in [row.pop("seq")]]


async def renew_leases(conn: Connection, leases: Mapping[UUID, int], *, lease_s: float) -> set[UUID]:
    """Renew what is still ours; return which runs those are. An expired lease that nobody took is ours again."""
    rows = await conn.fetch(
        """
        WITH held AS (
            SELECT r.id FROM public.agent_runs r
            JOIN unnest($1::uuid[], $2::bigint[]) AS held(id, lease_token) USING (id, lease_token)
            WHERE r.status = 'running'
            -- FOR NO KEY UPDATE in the order of ids, as the deltas of the same runs lock them.
            ORDER BY r.id FOR NO KEY UPDATE OF r
        )
        UPDATE public.agent_runs r SET lease_expires_at = now() + make_interval(secs => $3)
        FROM held WHERE r.id = held.id
        RETURNING r.id
        """,
        list(leases),
        list(leases.values()),
        lease_s,
    )
    return {row["id"] for row in rows}


async def find_cancel_requested(conn: Connection, run_ids: Sequence[UUID]) -> set[UUID]:
    rows = await conn.fetch(
        "SELECT id FROM public.agent_runs WHERE id = ANY($1) AND cancel_requested_at IS NOT NULL", list(run_ids)
    )
    return {row["id"] for row in rows}


async def hand_back(conn: Connection, leases: Mapping[UUID, int]) -> None:
    """Queue our runs again at once, in their old places. It counts as no attempt: nothing went wrong with them."""
    await conn.execute(
        """
        WITH held AS (
            SELECT r.id FROM public.agent_runs r
            JOIN unnest($1::uuid[], $2::bigint[]) AS held(id, lease_token) USING (id, lease_token)
            WHERE r.status = 'running'
            -- FOR NO KEY UPDATE in the order of ids, as everybody who locks several runs.
            ORDER BY r.id FOR NO KEY UPDATE OF r
        )
        UPDATE public.agent_runs r
        SET status = 'queued', lease_expires_at = NULL, leased_by = NULL, handed_back = r.handed_back + 1
        FROM held WHERE r.id = held.id
        """,
        list(leases),
        list(leases.values()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRun:
    id: UUID
    user_id: str
    agent_type: str
    lease_token: int
    is_cancel_requested: bool


async def lock_lost_runs(conn: Connection, *, limit: int) -> list[LostRun]:
    """Runs whose lease expired and that are not to be tried again: the user cancelled, or the attempts are spent."""
    rows = await conn.fetch(
        """
        SELECT id, user_id, agent_type, lease_token, cancel_requested_at IS NOT NULL AS is_cancel_requested
        FROM public.agent_runs
        WHERE status = 'running' AND lease_expires_at <= now()
          AND (attempt - handed_back >= $1 OR cancel_requested_at IS NOT NULL)
        LIMIT $2
        -- SKIP LOCKED: several workers look for the lost at once; each takes what no other has in hand.
        FOR UPDATE SKIP LOCKED
        """,
        MAX_ATTEMPTS,
        limit,
    )
    return [LostRun(**dict(row)) for row in rows]


async def oldest_expired_lease_s(conn: Connection) -> float:
    age = await conn.fetchval(
        """
        SELECT extract(epoch FROM now() - min(lease_expires_at)) FROM public.agent_runs
        WHERE status = 'running' AND lease_expires_at <= now()
        """
    )
    return float(age or 0)


async def longest_unserved_s(conn: Connection) -> float:
    """How long the worst-off user has had a run waiting while none of theirs was running or taken."""
    age = await conn.fetchval(
        """
        SELECT extract(epoch FROM max(now() - greatest(w.queued_at, e.last_leased_at)))
        FROM (SELECT user_id, min(queued_at) AS queued_at FROM public.agent_runs
              WHERE status = 'queued' GROUP BY user_id) w
        JOIN agents.entitlements e USING (user_id)
        WHERE NOT EXISTS (
            SELECT FROM public.agent_runs r WHERE r.user_id = w.user_id AND r.status = 'running'
        )
        """
    )
    return float(age or 0)
