"""One attempt at one run: prompt, model, deltas, end. The model is called outside any transaction.

Every write names the lease. Whoever finds it passed on stops without a word: the run is another worker's by then.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar, assert_never

import structlog

from libs.common.database import Connection, Database, DatabaseUnavailable
from libs.common.telemetry import span
from services.agents.ports import ChooseModel, Mirror, ModelFailed, ModelOutput, TextDelta, UsageReport
from services.agents.prompts import queries as prompt_queries
from services.agents.prompts.domain import Ingredients, Prompt, TemplateNotFound, Vibe, assemble, count_tokens
from services.agents.runs import operations, queries
from services.agents.runs.domain import Ending, RunError, RunEvent, StopReason, Usage
from services.agents.runs.operations import StartedRun

log = structlog.get_logger(__name__)

FLUSH_INTERVAL_S: Final = 0.04
FLUSH_CHARS: Final = 400

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What executing runs needs, the same for all runs of a process."""

    database: Database
    mirror: Mirror
    choose_model: ChooseModel
    idle_limit_s: float
    total_limit_s: float


class Stopped(Exception):
    """The attempt is to end here without an ending of its own: fenced, or handed back at shutdown."""


class Execution:
    """Runs once. `stop` may be called at any time, also twice; the first reason counts."""

    def __init__(self, started: StartedRun, *, engine: Engine) -> None:
        self.run_id = started.run.id
        self.lease_token = started.run.lease_token
        self._run = started.run
        self._engine = engine
        self._seq = started.event.seq
        self._stop: asyncio.Future[StopReason] = asyncio.get_running_loop().create_future()
        self._output: list[str] = []
        self._unsent: list[str] = []
        self._flushed_at = float("-inf")
        self._model_used: str | None = None
        self._input_tokens = 0
        self._reported: Usage | None = None

    def stop(self, reason: StopReason) -> None:
        if not self._stop.done():
            self._stop.set_result(reason)

    async def execute(self) -> None:
        """Bring the run to its end, or leave it to others where the lease or the process ends first."""
        with span("run", service="agents", traceparent=self._run.traceparent):
            try:
                ending = await self._attempt()
                await self._finish(ending)
                log.info("run_ended", run_id=str(self.run_id), outcome=ending.outcome, attempt=self._run.attempt)
            except Stopped:
                log.info("run_left", run_id=str(self.run_id), attempt=self._run.attempt)

    async def _attempt(self) -> Ending:
        deadline = time.monotonic() + self._engine.total_limit_s
        try:
            prompt = await self._persist(self._read_prompt)
            provider = self._engine.choose_model(self._run.model_requested)
            self._model_used = provider.name
            self._input_tokens = prompt.input_tokens
            outputs = provider.stream(prompt, max_output_tokens=self._run.max_output_tokens)
            return await self._follow(outputs, deadline=deadline)
        except TemplateNotFound as error:
            return self._failed(RunError(code=error.code, detail=error.detail))
        except ModelFailed as failure:
            return self._failed(failure.error)
        except Stopped:
            raise
        except Exception:  # the edge of a run: a bug ends this run, visibly and at our cost, and no other
            log.exception("run_crashed", run_id=str(self.run_id))
            return Ending.crashed(RunError(code="agents.internal", detail="Something went wrong on our side."))

    async def _read_prompt(self, conn: Connection) -> Prompt:
        run = self._run
        instructions: str | None = None
        if run.template_id is not None:
            template = await prompt_queries.find_template(conn, run.user_id, run.template_id)
            if template is None:
                raise TemplateNotFound("The template of this run does not exist any more.")
            instructions = template.instructions
        ingredients = Ingredients(
            task=run.task,
            agent_type=run.agent_type,
            vibe=Vibe().overridden_by(run.vibe),
            profile=run.profile,
            context=run.context,
            template_instructions=instructions,
        )
        return assemble(await prompt_queries.list_atoms(conn), ingredients)

    async def _follow(self, outputs: AsyncGenerator[ModelOutput, None], *, deadline: float) -> Ending:
        """Take what the model sends, piece by piece, until it ends or one of the limits or a stop comes first."""
        async with contextlib.aclosing(outputs):
            pending = asyncio.create_task(_next(outputs))
            try:
                heard_at = time.monotonic()
                while True:
                    idle_until = heard_at + self._engine.idle_limit_s
                    await self._wait(pending, until=min(deadline, idle_until))
                    if self._stop.done():
                        return self._stopped(self._stop.result())
                    if pending.done():
                        output = pending.result()
                        if output is None:
                            return self._succeeded()
                        self._take(output)
                        heard_at = time.monotonic()
                        pending = asyncio.create_task(_next(outputs))
                    now = time.monotonic()
                    if now >= deadline:
                        return self._timed_out(f"The run took longer than {self._engine.total_limit_s:g} seconds.")
                    if now >= heard_at + self._engine.idle_limit_s:
                        return self._timed_out(f"The model was silent for {self._engine.idle_limit_s:g} seconds.")
                    if self._is_flush_due(now):
                        await self._flush()
            finally:
                # The generator cannot be closed while it is being waited on.
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)

    async def _wait(self, pending: "asyncio.Task[ModelOutput | None]", *, until: float) -> None:
        if self._unsent:
            until = min(until, self._flushed_at + FLUSH_INTERVAL_S)
        await asyncio.wait(
            {pending, self._stop}, timeout=max(0.0, until - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
        )

    def _take(self, output: ModelOutput) -> None:
        match output:
            case TextDelta(text=text):
                if text := _storable(text):
                    self._output.append(text)
                    self._unsent.append(text)
            case UsageReport(usage=usage):
                self._reported = usage
            case _:
                assert_never(output)

    def _is_flush_due(self, now: float) -> bool:
        """The first piece at once, so that the user sees it begin; later ones gathered, so that rows stay few."""
        if not self._unsent:
            return False
        return now - self._flushed_at >= FLUSH_INTERVAL_S or sum(map(len, self._unsent)) >= FLUSH_CHARS

    async def _flush(self) -> None:
        event = RunEvent(seq=self._seq + 1, type="run.delta", data={"text": "".join(self._unsent)})

        async def append(conn: Connection) -> bool:
            return await queries.append_events(conn, self.run_id, [event], lease_token=self.lease_token)

        if not await self._persist(append):
            raise Stopped
        self._seq = event.seq
        self._unsent.clear()
        self._flushed_at = time.monotonic()
        self._engine.mirror.offer(self.run_id, [event])

    async def _finish(self, ending: Ending) -> None:
        async def finish(conn: Connection) -> list[RunEvent] | None:
            return await operations.finish_run(
                conn, self.run_id, ending, lease_token=self.lease_token, last_text="".join(self._unsent)
            )

        events = await self._persist(finish)
        if events is None:
            raise Stopped
        self._engine.mirror.offer(self.run_id, events)

    async def _persist(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do one transaction, waiting out an absent database: the run goes on where it was when it is back.

        The work is safe to repeat. Raises Stopped if the process ends or the lease is lost meanwhile.
        """
        while True:
            try:
                async with self._engine.database.transaction() as conn:
                    return await work(conn)
            except DatabaseUnavailable as error:
                log.warning("run_paused", run_id=str(self.run_id), error=error.detail)
                up = asyncio.create_task(self._engine.database.wait_until_up())
                await asyncio.wait({up, self._stop}, return_when=asyncio.FIRST_COMPLETED)
                up.cancel()
                if self._stop.done() and self._stop.result() is not StopReason.CANCELLED:
                    raise Stopped from error

    def _stopped(self, reason: StopReason) -> Ending:
        match reason:
            case StopReason.CANCELLED:
                return Ending.cancelled(usage=self._usage(), output=self._text(), model_used=self._model_used)
            case StopReason.FENCED | StopReason.SHUTDOWN:
                raise Stopped
            case _:
                assert_never(reason)

    def _succeeded(self) -> Ending:
        return Ending.succeeded(output=self._text(), usage=self._usage(), model_used=self._model_used or "none")

    def _failed(self, error: RunError) -> Ending:
        usage = self._reported or Usage()
        return Ending.failed(error, usage=usage, output=self._text() or None, model_used=self._model_used)

    def _timed_out(self, detail: str) -> Ending:
        error = RunError(code="agents.run_timed_out", detail=f"{detail} Nothing was charged.")
        return Ending.timed_out(error, usage=self._usage(), output=self._text() or None, model_used=self._model_used)

    def _text(self) -> str:
        return "".join(self._output)

    def _usage(self) -> Usage:
        """What the provider reported, or what we count where it has not come to that, within what was held."""
        if self._reported is not None:
            return self._reported
        return Usage(
            input_tokens=self._input_tokens,
            output_tokens=min(count_tokens(self._text()), self._run.max_output_tokens),
            is_estimated=True,
        )


def _storable(text: str) -> str:
    """Without what PostgreSQL's text cannot hold: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "").encode(errors="replace").decode()


async def _next(outputs: AsyncGenerator[ModelOutput, None]) -> ModelOutput | None:
    return await anext(outputs, None)
