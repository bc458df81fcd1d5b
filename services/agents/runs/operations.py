"""Writes on runs: accept, start, finish, cancel. Each is safe to repeat."""

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.agents import RunFinished, RunStarted
from libs.common.telemetry import current_traceparent, span
from services.agents.prompts import queries as prompt_queries
from services.agents.prompts.domain import Vibe
from services.agents.runs import feedback_queries, lease_queries, queries
from services.agents.runs.domain import (
    Ending,
    LeasedRun,
    NewRun,
    NotAwaitingApproval,
    RunError,
    RunEvent,
    RunNotFinished,
    RunStatus,
)
from services.agents.runs.lease_queries import Caps
from services.agents.users import queries as user_queries


async def accept_run(conn: Connection, run: NewRun) -> bool:
    """Queue the run with its first event. Return False, with nothing written, if it is known or its user is gone.

    The sliders are settled here, the user's own under the run's: a second attempt must not find others.
    """
    if not await user_queries.hold_user(conn, run.user_id):
        return False
    vibe = (await prompt_queries.find_vibe(conn, run.user_id) or Vibe()).overridden_by(run.vibe)
    return await queries.insert_run(conn, replace(run, vibe=vibe.as_dict()))


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedRun:
    run: LeasedRun
    event: RunEvent


async def start_runs(conn: Connection, *, caps: Caps, worker: str, lease_s: float, limit: int) -> list[StartedRun]:
    """Lease up to `limit` runs for a worker, each with its `run.started`."""
    user_ids = await lease_queries.lock_users_to_serve(conn, caps=caps, limit=limit)
    if not user_ids:
        return []
    runs = await lease_queries.lease_runs(conn, user_ids, caps=caps, worker=worker, lease_s=lease_s, limit=limit)
    seqs = await queries.last_seqs(conn, [run.id for run in runs])
    started = [
        StartedRun(run=run, event=RunEvent(seq=seqs[run.id] + 1, type="run.started", data={"attempt": run.attempt}))
        for run in runs
    ]
    await queries.insert_events(conn, [(it.run.id, it.event) for it in started])
    await outbox.add_traced(conn, [_told_in_its_trace(run) for run in runs])
    return started


def _told_in_its_trace(run: LeasedRun) -> tuple[RunStarted, str | None]:
    with span("start run", service="agents", traceparent=run.traceparent):
        return RunStarted(run_id=run.id, user_id=UUID(run.user_id), attempt=run.attempt), current_traceparent()


async def finish_run(
    conn: Connection,
    run_id: UUID,
    ending: Ending,
    *,
    lease_token: int | None,
    last_text: str = "",
    last_seq: int | None = None,
) -> list[RunEvent] | None:
    """Bring the run to its end with its last events and `run_finished`; return those events.

    `last_seq`: the number of its last event, for who has written that under the lease; looked up where it is None.

    Returns None, with nothing written, if the lease has passed on or the run has ended: whoever did that also said so.
    """
    row = await queries.mark_finished(conn, run_id, ending, lease_token=lease_token)
    if row is None:
        return None
    seq = last_seq if last_seq is not None else (await queries.last_seqs(conn, [run_id]))[run_id]
    parts: list[tuple[str, dict[str, Any]]] = [("run.delta", {"text": last_text})] if last_text else []
    if ending.usage.input_tokens or ending.usage.output_tokens:
        parts.append(("run.usage", _usage_event(ending)))
    parts.append((f"run.{ending.outcome}", ending.event_data()))
    events = [RunEvent(seq=seq + n, type=kind, data=data) for n, (kind, data) in enumerate(parts, start=1)]
    await queries.insert_events(conn, [(run_id, event) for event in events])
    await outbox.add(
        conn,
        RunFinished(
            run_id=run_id,
            user_id=UUID(row["user_id"]),
            outcome=ending.outcome.value,
            is_billable=ending.is_billable,
            agent_type=row["agent_type"],
            model_used=row["model_used"] or "none",
            input_tokens=ending.usage.input_tokens,
            output_tokens=ending.usage.output_tokens,
            cost_micro_usd=ending.usage.cost_micro_usd,
        ),
    )
    return events


def _usage_event(ending: Ending) -> dict[str, Any]:
    usage = ending.usage
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_micro_usd": usage.cost_micro_usd,
        "is_estimated": usage.is_estimated,
    }


async def cancel_run(conn: Connection, run_id: UUID) -> list[RunEvent]:
    """End a queued run at once; ask the worker of a running one to stop; leave an ended one as it is.

    Returns the events to mirror. Row-level security is not asked here: the caller has shown the run to the user before.
    """
    locked = await queries.lock_queued_or_running(conn, run_id)
    if locked is None:
        return []
    _, status = locked
    if status is RunStatus.QUEUED:
        return await finish_run(conn, run_id, Ending.cancelled(), lease_token=None) or []
    await queries.mark_cancel_requested(conn, run_id)
    return []


async def give_feedback(conn: Connection, run_id: UUID, *, verdict: str, detail: str | None) -> None:
    """Record the verdict and move its atoms' success rates; a former verdict on the run is taken back first.

    Raises RunNotFinished while there is nothing to judge.
    """
    atoms = await feedback_queries.lock_atoms_of(conn, run_id)
    if (await queries.get_run(conn, run_id)).finished_at is None:
        raise RunNotFinished
    former = await feedback_queries.find_feedback(conn, run_id)
    await feedback_queries.upsert_feedback(conn, run_id, verdict=verdict, detail=detail)
    was_approved = former is not None and former[0] == "approved"
    was_rejected = former is not None and former[0] != "approved"
    approvals = int(verdict == "approved") - int(was_approved)
    rejections = int(verdict != "approved") - int(was_rejected)
    if atoms and (approvals or rejections):
        await feedback_queries.move_rates(conn, atoms, approvals=approvals, rejections=rejections)


async def decide_run(conn: Connection, run_id: UUID, *, decision: str) -> None:
    """Approve or reject what waits for approval. Saying the same again changes nothing; the opposite is a conflict."""
    if await queries.mark_decided(conn, run_id, decision):
        return
    if (await queries.get_run(conn, run_id)).approval != decision:
        raise NotAwaitingApproval


async def finish_lost_runs(conn: Connection, *, limit: int) -> list[tuple[UUID, list[RunEvent]]]:
    """End the runs whose workers vanished and that are not tried again; nothing is charged for them."""
    finished: list[tuple[UUID, list[RunEvent]]] = []
    for lost in await lease_queries.lock_lost_runs(conn, limit=limit):
        said = await queries.text_of_attempt(conn, lost.id)
        ending = (
            replace(Ending.cancelled(), output=said)
            if lost.is_cancel_requested
            else Ending.crashed(RunError(code="agents.attempts_exhausted", detail=ATTEMPTS_EXHAUSTED), output=said)
        )
        events = await finish_run(conn, lost.id, ending, lease_token=lost.lease_token)
        if events is not None:
            finished.append((lost.id, events))
    return finished


ATTEMPTS_EXHAUSTED = "The run broke off three times on our side. Nothing was charged; please try again later."
