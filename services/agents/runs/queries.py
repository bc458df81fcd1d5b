"""All SQL on runs and their events, except leasing (see lease_queries)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common import outbox
from libs.common.database import Connection, Record
from libs.common.events import Event
from services.agents.runs.domain import (
    TERMINAL_EVENT_TYPES,
    Append,
    Finish,
    NewRun,
    Run,
    RunEvent,
    RunFilter,
    RunNotFound,
    RunStatus,
)


async def insert_runs(conn: Connection, runs: Sequence[NewRun]) -> set[UUID]:
    """Queue the runs, each with its first event; return those that were not there yet."""
    rows = await conn.fetch(
        """
        WITH run AS (
            INSERT INTO public.agent_runs (
                id, user_id, agent_type, task, model_requested, vibe, context, profile, template_id,
                background_event_id, max_output_tokens, traceparent, priority, approval
            )
            SELECT id, user_id, agent_type, task, model_requested, vibe, context, profile, template_id,
                background_event_id, max_output_tokens, traceparent, priority,
                CASE WHEN is_approval_required THEN 'pending' END
            FROM jsonb_to_recordset($1) AS asked(
                id uuid, user_id text, agent_type text, task text, model_requested text, vibe jsonb, context jsonb,
                profile jsonb, template_id uuid, background_event_id uuid, max_output_tokens integer, traceparent text,
                priority smallint, is_approval_required boolean
            )
            -- In the order of ids, as everybody who locks several runs.
            ORDER BY id
            -- ON CONFLICT closes the race of two events that ask for the same run: the later one finds it there.
            ON CONFLICT (id) DO NOTHING
            RETURNING id
        )
        INSERT INTO agents.run_events (run_id, seq, type) SELECT id, 1, 'run.queued' FROM run RETURNING run_id
        """,
        list(runs),
    )
    return {row["run_id"] for row in rows}


async def find_run(conn: Connection, run_id: UUID) -> Run | None:
    row = await conn.fetchrow(
        """
        SELECT id, status, agent_type, task, model_requested, model_used, output, input_tokens, output_tokens,
            cost_micro_usd, error, template_id, background_event_id, warnings, atoms, approval, is_bookmarked,
            attempt, cancel_requested_at, created_at, started_at, finished_at
        FROM public.agent_runs WHERE id = $1
        """,
        run_id,
    )
    return _run(row) if row else None


async def get_run(conn: Connection, run_id: UUID) -> Run:
    """Raises RunNotFound, also where row-level security hides the run: the two must look alike."""
    run = await find_run(conn, run_id)
    if run is None:
        raise RunNotFound
    return run


async def find_owner(conn: Connection, run_id: UUID) -> str | None:
    return await conn.fetchval("SELECT user_id FROM public.agent_runs WHERE id = $1", run_id)


async def list_runs(
    conn: Connection, *, user_id: str, wanted: RunFilter, before: tuple[datetime, UUID] | None, limit: int
) -> list[Run]:
    """A user's own runs, newest first, starting behind `before`. An admin's policy shows more; a list does not."""
    rows = await conn.fetch(
        """
        SELECT id, status, agent_type, task, model_requested, model_used, output, input_tokens, output_tokens,
            cost_micro_usd, error, template_id, background_event_id, warnings, atoms, approval, is_bookmarked,
            attempt, cancel_requested_at, created_at, started_at, finished_at
        FROM public.agent_runs
        WHERE user_id = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
          AND ($5::text IS NULL OR status = $5)
          AND ($6::text IS NULL OR agent_type = $6)
          AND ($7::text IS NULL OR strpos(lower(task), lower($7)) > 0 OR strpos(lower(output), lower($7)) > 0)
          AND ($8::boolean IS NULL OR is_bookmarked = $8)
          AND ($9::text IS NULL OR approval = $9)
          AND ($10::timestamptz IS NULL OR created_at >= $10)
          AND ($11::timestamptz IS NULL OR created_at < $11)
        ORDER BY created_at DESC, id DESC
        LIMIT $4
        """,
        user_id,
        *(before or (None, None)),
        limit,
        wanted.status,
        wanted.agent_type,
        wanted.words,
        wanted.is_bookmarked,
        wanted.approval,
        wanted.since,
        wanted.until,
    )
    return [_run(row) for row in rows]


async def usage_this_month(conn: Connection, *, user_id: str) -> dict[str, int]:
    """What the user's runs of this calendar month in UTC used, as agents knows it."""
    row = await conn.fetchrow(
        """
        SELECT count(*) AS runs, coalesce(sum(input_tokens + output_tokens), 0)::bigint AS tokens
        FROM public.agent_runs
        WHERE user_id = $1 AND is_billable
          AND finished_at >= date_trunc('month', now() AT TIME ZONE 'utc') AT TIME ZONE 'utc'
        """,
        user_id,
    )
    return {"runs": row["runs"], "tokens": row["tokens"]} if row else {"runs": 0, "tokens": 0}


async def mark_bookmarked(conn: Connection, run_id: UUID, *, is_bookmarked: bool) -> None:
    await conn.execute("UPDATE public.agent_runs SET is_bookmarked = $2 WHERE id = $1", run_id, is_bookmarked)


async def mark_decided(conn: Connection, run_id: UUID, decision: str) -> bool:
    """Decide on a result that waits for approval; False if it does not wait (any more)."""
    decided = await conn.fetchval(
        "UPDATE public.agent_runs SET approval = $2 WHERE id = $1 AND approval = 'pending' RETURNING true",
        run_id,
        decision,
    )
    return decided is not None


async def delete_old_events(conn: Connection, *, keep_days: int, limit: int) -> int:
    """Forget streams of runs that ended long ago, except their ends: a stream always has one. Return how many rows."""
    deleted = await conn.fetch(
        """
        DELETE FROM agents.run_events e USING (
            SELECT o.run_id, o.seq FROM agents.run_events o JOIN public.agent_runs r ON r.id = o.run_id
            WHERE o.created_at < now() - make_interval(days => $1) AND r.finished_at < now() - make_interval(days => $1)
              AND o.type <> ALL($2)
            LIMIT $3
        ) old
        WHERE e.run_id = old.run_id AND e.seq = old.seq
        RETURNING 1
        """,
        keep_days,
        list(TERMINAL_EVENT_TYPES),
        limit,
    )
    return len(deleted)


def _run(row: Record) -> Run:
    values: dict[str, Any] = {**dict(row), "status": RunStatus(row["status"])}
    return Run(**values)


async def lock_queued_or_running(conn: Connection, run_id: UUID) -> Record | None:
    """user_id, agent_type and status of a run that has not ended, locked; None once it has."""
    return await conn.fetchrow(
        """
        SELECT user_id, agent_type, status FROM public.agent_runs
        WHERE id = $1 AND status IN ('queued', 'running')
        -- FOR UPDATE: a worker that is just leasing the run goes first or waits, so it is cancelled in one way only.
        FOR UPDATE
        """,
        run_id,
    )


async def mark_cancel_requested(conn: Connection, run_id: UUID) -> None:
    await conn.execute(
        """
        UPDATE public.agent_runs SET cancel_requested_at = coalesce(cancel_requested_at, now()) WHERE id = $1
        """,
        run_id,
    )


async def finish_runs(conn: Connection, finishes: Sequence[tuple[Finish, Event]]) -> dict[UUID, Run]:
    """Bring each run to its end under its lease, or a queued one (without a lease) to its end; return those it did.

    The last events of its stream, and what is told of it, are written with that or not at all.
    """
    rows = await outbox.add_traced_of(
        conn,
        [(event, finish.traceparent) for finish, event in finishes],
        """
        WITH fence AS (
            SELECT r.id, ended.*
            FROM public.agent_runs r JOIN jsonb_to_recordset($6) AS ended(
                run_id uuid, lease_token bigint, place integer, outcome text, is_billable boolean, output text,
                model_used text, input_tokens bigint, output_tokens bigint, cost_micro_usd bigint, error jsonb,
                warnings jsonb, atoms text[], events jsonb
            ) ON r.id = ended.run_id
            WHERE CASE WHEN ended.lease_token IS NULL THEN r.status = 'queued'
                       ELSE r.status = 'running' AND r.lease_token = ended.lease_token END
            -- FOR NO KEY UPDATE in the order of ids, as everybody who locks several runs; what waits for a new lease
            -- or another's ending reads the row again, and finds itself fenced.
            ORDER BY r.id FOR NO KEY UPDATE OF r
        ), written AS (
            INSERT INTO agents.run_events (run_id, seq, type, data)
            SELECT fence.id, e.seq, e.type, e.data
            FROM fence, jsonb_to_recordset(fence.events) AS e(seq bigint, type text, data jsonb)
        ), done AS (
            UPDATE public.agent_runs r
            SET status = outcome, finished_at = now(), is_billable = fence.is_billable,
                output = coalesce(fence.output, r.output), model_used = coalesce(fence.model_used, r.model_used),
                input_tokens = fence.input_tokens, output_tokens = fence.output_tokens,
                cost_micro_usd = fence.cost_micro_usd, error = fence.error, warnings = fence.warnings,
                atoms = fence.atoms, lease_expires_at = NULL, leased_by = NULL,
                cancel_requested_at = CASE WHEN outcome = 'cancelled' THEN coalesce(r.cancel_requested_at, now())
                                           ELSE r.cancel_requested_at END
            FROM fence WHERE r.id = fence.id
            RETURNING fence.place, r.id, r.status, r.agent_type, r.task, r.model_requested, r.model_used, r.output,
                r.input_tokens, r.output_tokens, r.cost_micro_usd, r.error, r.template_id, r.background_event_id,
                r.warnings, r.atoms, r.approval, r.is_bookmarked, r.attempt, r.cancel_requested_at, r.created_at,
                r.started_at, r.finished_at
        )
        """,
        """
        SELECT id, status, agent_type, task, model_requested, model_used, output, input_tokens, output_tokens,
            cost_micro_usd, error, template_id, background_event_id, warnings, atoms, approval, is_bookmarked,
            attempt, cancel_requested_at, created_at, started_at, finished_at
        FROM done
        """,
        [_end(finish, place) for place, (finish, _) in enumerate(finishes, start=1)],
    )
    return {row["id"]: _run(row) for row in rows}


def _end(finish: Finish, place: int) -> dict[str, Any]:
    ending = finish.ending
    return {
        "run_id": finish.run_id,
        "lease_token": finish.lease_token,
        "place": place,
        "outcome": ending.outcome,
        "is_billable": ending.is_billable,
        "output": ending.output,
        "model_used": ending.model_used,
        "input_tokens": ending.usage.input_tokens,
        "output_tokens": ending.usage.output_tokens,
        "cost_micro_usd": ending.usage.cost_micro_usd,
        "error": ending.error,
        "warnings": ending.warnings,
        "atoms": ending.atoms,
        "events": finish.events(),
    }


async def last_seqs(conn: Connection, run_ids: Sequence[UUID]) -> dict[UUID, int]:
    """The last sequence number of each run. True only while the caller holds the runs' rows or leases."""
    rows = await conn.fetch(
        """
        SELECT r.id, coalesce((SELECT max(e.seq) FROM agents.run_events e WHERE e.run_id = r.id), 0) AS seq
        FROM unnest($1::uuid[]) AS r(id)
        """,
        list(run_ids),
    )
    return {row["id"]: row["seq"] for row in rows}


async def append_events(conn: Connection, appends: Sequence[Append]) -> list[UUID]:
    """Append each event under its lease, one of a run at most; return the runs that are still held by their lease.

    For the others nothing is written: another worker has them by now. Repeating the same append is harmless: after a
    commit of unknown outcome it is simply done again.
    """
    rows = await conn.fetch(
        """
        WITH asked AS (
            SELECT run_id, lease_token, seq, type, data
            FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::jsonb[])
                AS e(run_id, lease_token, seq, type, data)
        ), fence AS (
            SELECT r.id, asked.seq, asked.type, asked.data
            FROM public.agent_runs r JOIN asked ON asked.run_id = r.id
            WHERE r.lease_token = asked.lease_token AND r.status = 'running'
            -- FOR SHARE: a new lease waits for this commit, or this statement waits for the lease and finds itself
            -- fenced. Without the lock both could pass, and the new worker's numbers would collide with ours. In the
            -- order of ids, as everybody who locks several runs.
            ORDER BY r.id FOR SHARE OF r
        ), appended AS (
            INSERT INTO agents.run_events (run_id, seq, type, data)
            SELECT id, seq, type, data FROM fence
            -- ON CONFLICT: only the holder of the fence writes these numbers, so what is there is our own.
            ON CONFLICT (run_id, seq) DO NOTHING
        )
        SELECT id FROM fence
        """,
        [it.run_id for it in appends],
        [it.lease_token for it in appends],
        [it.event.seq for it in appends],
        [it.event.type for it in appends],
        [dict(it.event.data) for it in appends],
    )
    return [row["id"] for row in rows]


async def list_events(conn: Connection, run_id: UUID, *, after: int, limit: int) -> list[RunEvent]:
    rows = await conn.fetch(
        """
        SELECT seq, type, data FROM agents.run_events WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
        """,
        run_id,
        after,
        limit,
    )
    return [RunEvent(seq=row["seq"], type=row["type"], data=row["data"]) for row in rows]


async def text_of_attempt(conn: Connection, run_id: UUID) -> str | None:
    """What a reader of the stream has before them: the text since the last `run.started`; None before the first."""
    return await conn.fetchval(
        """
        SELECT string_agg(data->>'text', '' ORDER BY seq) FROM agents.run_events
        WHERE run_id = $1 AND type = 'run.delta'
          AND seq > (SELECT max(seq) FROM agents.run_events WHERE run_id = $1 AND type = 'run.started')
        """,
        run_id,
    )


async def has_ended_by(conn: Connection, run_id: UUID, *, seq: int) -> bool:
    """Whether the run's terminal event has a number up to `seq`."""
    return await conn.fetchval(
        "SELECT EXISTS (SELECT FROM agents.run_events WHERE run_id = $1 AND seq <= $2 AND type = ANY($3))",
        run_id,
        seq,
        list(TERMINAL_EVENT_TYPES),
    )


async def delete_runs_of(conn: Connection, user_id: str) -> None:
    """Delete a user's runs; their events follow by foreign key, and who still works on one finds itself fenced."""
    await conn.execute(
        """
        DELETE FROM public.agent_runs WHERE id IN (
            SELECT id FROM public.agent_runs WHERE user_id = $1
            -- FOR UPDATE in the order of ids, as everybody who locks several runs: nobody waits in a circle.
            ORDER BY id FOR UPDATE
        )
        """,
        user_id,
    )
