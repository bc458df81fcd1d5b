"""Writes on runs: accept, start, finish, cancel. Each is safe to repeat."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from libs.common.database import Connection
from libs.common.events.agents import RunFinished
from libs.common.telemetry import current_traceparent
from services.agents.runs import feedback_queries, lease_queries, queries
from services.agents.runs.domain import (
    Ending,
    Finish,
    LeasedRun,
    NewRun,
    NotAwaitingApproval,
    Run,
    RunError,
    RunEvent,
    RunNotFinished,
    RunStatus,
)
from services.agents.runs.lease_queries import Caps, LostRun
from services.agents.users import queries as user_queries


async def accept_runs(conn: Connection, runs: Sequence[NewRun]) -> set[UUID]:
    """Queue the runs, each with its first event; return which.

    Of a run that is known or whose user is gone nothing is written. The sliders are settled here, the user's own under
    the run's: a second attempt must not find others.
    """
    vibes = await user_queries.hold_users(conn, {run.user_id for run in runs})
    accepted = [
        replace(run, vibe=vibes[run.user_id].overridden_by(run.vibe).as_dict()) for run in runs if run.user_id in vibes
    ]
    return await queries.insert_runs(conn, accepted) if accepted else set()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedRun:
    run: LeasedRun
    event: RunEvent


async def start_runs(conn: Connection, *, caps: Caps, worker: str, lease_s: float, limit: int) -> list[StartedRun]:
    """Lease up to `limit` runs for a worker, each with its `run.started`: one statement, no transaction around it."""
    leased = await lease_queries.lease_runs(conn, caps=caps, worker=worker, lease_s=lease_s, limit=limit)
    return [
        StartedRun(run=run, event=RunEvent(seq=seq, type="run.started", data={"attempt": run.attempt}))
        for run, seq in leased
    ]


async def finish_runs(conn: Connection, finishes: Sequence[Finish]) -> dict[UUID, Run]:
    """Bring runs to their ends with their last events and `run_finished`, each named once; return those it did.

    For a run that has ended or whose lease has passed on nothing is written: whoever did that also said so. This is
    one statement, which needs no transaction around it.
    """
    return await queries.finish_runs(conn, [(finish, _finished(finish)) for finish in finishes])


def _finished(finish: Finish) -> RunFinished:
    ending = finish.ending
    return RunFinished(
        run_id=finish.run_id,
        user_id=UUID(finish.user_id),
        outcome=ending.outcome.value,
        is_billable=ending.is_billable,
        agent_type=finish.agent_type,
        model_used=ending.model_used or "none",
        input_tokens=ending.usage.input_tokens,
        output_tokens=ending.usage.output_tokens,
        cost_micro_usd=ending.usage.cost_micro_usd,
    )


async def cancel_run(conn: Connection, run_id: UUID) -> list[RunEvent]:
    """End a queued run at once; ask the worker of a running one to stop; leave an ended one as it is.

    Returns the events to mirror. Row-level security is not asked here: the caller has shown the run to the user before.
    """
    locked = await queries.lock_queued_or_running(conn, run_id)
    if locked is None:
        return []
    if locked["status"] != RunStatus.QUEUED:
        await queries.mark_cancel_requested(conn, run_id)
        return []
    finish = Finish(
        run_id=run_id,
        user_id=locked["user_id"],
        agent_type=locked["agent_type"],
        lease_token=None,
        ending=Ending.cancelled(),
        last_seq=(await queries.last_seqs(conn, [run_id]))[run_id],
        traceparent=current_traceparent(),
    )
    return finish.events() if await finish_runs(conn, [finish]) else []


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
    lost = await lease_queries.lock_lost_runs(conn, limit=limit)
    if not lost:
        return []
    seqs = await queries.last_seqs(conn, [run.id for run in lost])
    finishes = [
        Finish(
            run_id=run.id,
            user_id=run.user_id,
            agent_type=run.agent_type,
            lease_token=run.lease_token,
            ending=_end_of_lost(run, said=await queries.text_of_attempt(conn, run.id)),
            last_seq=seqs[run.id],
            traceparent=current_traceparent(),
        )
        for run in lost
    ]
    finished = await finish_runs(conn, finishes)
    return [(finish.run_id, finish.events()) for finish in finishes if finish.run_id in finished]


def _end_of_lost(run: LostRun, *, said: str | None) -> Ending:
    if run.is_cancel_requested:
        return replace(Ending.cancelled(), output=said)
    return Ending.crashed(RunError(code="agents.attempts_exhausted", detail=ATTEMPTS_EXHAUSTED), output=said)


ATTEMPTS_EXHAUSTED = "The run broke off three times on our side. Nothing was charged; please try again later."
