"""One attempt at one run: prompt, model, deltas, end. The model is called outside any transaction.

Every write names the lease. Whoever finds it passed on stops without a word: the run is another worker's by then.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar, assert_never

import structlog

from libs.common.database import Connection, Database, DatabaseUnavailable
from libs.common.logs import log_line
from libs.common.telemetry import current_trace_id, current_traceparent, span
from libs.common.waiting import end, woken
from services.agents.models.domain import ModelNotAvailable
from services.agents.ports import (
    ChooseModel,
    Holds,
    Mirror,
    ModelChosen,
    ModelFailed,
    ModelOutput,
    ModelProvider,
    ModelWish,
    Round,
    TextDelta,
    ToolCall,
    ToolSpec,
    UsageReport,
)
from services.agents.prompts.domain import Prompt, count_tokens, held_input_tokens
from services.agents.runs.domain import (
    Append,
    Ending,
    Finish,
    Outcome,
    OutputWarning,
    RunError,
    RunEvent,
    StopReason,
    Usage,
)
from services.agents.runs.ingredients import AtomShelf, prompt_of
from services.agents.runs.operations import StartedRun
from services.agents.runs.orchestration import MAX_TOOL_ROUNDS, TOOLS, PlanInvalid, read_plan, repair_request
from services.agents.runs.safety import check_output
from services.agents.runs.scribe import Scribe
from services.agents.runs.tools import use_tool
from services.agents.runs.transcript import Transcript
from services.agents.templates.domain import TemplateNotFound

log = structlog.get_logger(__name__)

FREE: Final = "free"
LEAST_OUTPUT_TOKENS: Final = 32
"""A further round of an orchestrator that could say less than this is not begun."""
ORCHESTRATOR: Final = "orchestrator"
TOOL_SPECS: Final = tuple(
    ToolSpec(name=name, description=description, parameters=parameters)
    for name, (description, parameters) in TOOLS.items()
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What executing runs needs, the same for all runs of a process."""

    database: Database
    scribe: Scribe
    shelf: AtomShelf
    mirror: Mirror
    choose_model: ChooseModel
    holds: Holds
    first_token_limit_s: float
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
        self._news, self._has_room = asyncio.Event(), asyncio.Event()
        self._heard_at = float("-inf")
        self._patience_s = engine.first_token_limit_s
        self._is_held_back = started.run.agent_type == ORCHESTRATOR
        self._transcript = Transcript(is_held_back=self._is_held_back)
        self._model_used: str | None = None
        self._atoms: tuple[str, ...] = ()
        self._calls: list[ToolCall] = []
        self._warnings: list[OutputWarning] = []
        self._input_tokens = 0
        self._held_tokens = held_input_tokens(started.run.task, started.run.context) + started.run.max_output_tokens
        self._spent = Usage()
        self._reported: Usage | None = None

    def stop(self, reason: StopReason) -> None:
        if not self._stop.done():
            self._stop.set_result(reason)
            self._news.set()

    async def execute(self) -> None:
        """Bring the run to its end, or leave it to others where the lease or the process ends first."""
        with span("run", service="agents", traceparent=self._run.traceparent):
            try:
                ending = await self._attempt()
                await self._finish(ending)
                self._tell(ending)
            except Stopped:
                log.info("run_left", run_id=str(self.run_id), attempt=self._run.attempt)

    def _tell(self, ending: Ending) -> None:
        run_id, attempt = str(self.run_id), self._run.attempt
        log_line("run_ended", run_id=run_id, outcome=ending.outcome, attempt=attempt, trace_id=current_trace_id())

    async def _attempt(self) -> Ending:
        deadline = time.monotonic() + self._engine.total_limit_s
        try:
            prompt = prompt_of(self._run, await self._patiently(self._engine.shelf.atoms))
            self._atoms = tuple(f"{atom.key}@{atom.version}" for atom in prompt.atoms)
            provider = self._engine.choose_model(
                ModelWish(requested=self._run.model_requested, tier=self._run.tier or FREE)
            )
            self._model_used = provider.name
            return await self._converse(provider, prompt, deadline=deadline)
        except TemplateNotFound as error:
            return self._failed(RunError(code=error.code, detail=error.detail), reported=None)
        except ModelNotAvailable as error:
            return Ending.crashed(RunError(code=error.code, detail=f"{error.detail} Nothing was charged."))
        except ModelFailed as failure:
            return self._failed(failure.error, reported=failure.reported)
        except Stopped:
            raise
        except Exception:  # the edge of a run: a bug ends this run, visibly and at our cost, and no other
            log.exception("run_crashed", run_id=str(self.run_id))
            ours = RunError(code="agents.internal", detail="Something went wrong on our side.")
            return Ending.crashed(ours, output=self._transcript.seen)

    async def _converse(self, provider: ModelProvider, prompt: Prompt, *, deadline: float) -> Ending:
        """One round for most runs; an orchestrator may use tools, and has one chance to mend its plan.

        All rounds together stay within the hold of the run: each is given what the ones before have left of it, and
        before one would run out of it, metering is asked for more.
        """
        rounds: list[Round] = []
        has_mended = False
        while True:
            affordable = self._affordable_output(prompt, rounds)
            tools = TOOL_SPECS if self._is_held_back and len(rounds) < MAX_TOOL_ROUNDS else ()
            self._input_tokens = _round_tokens(prompt, rounds)
            outputs = provider.stream(prompt, max_output_tokens=affordable, tools=tools, rounds=rounds)
            if (ending := await self._follow(outputs, deadline=deadline)) is not None:
                return ending
            following = await self._next_round(may_mend=not has_mended)
            if following is None:
                return self._succeeded()
            rounds.append(following)
            has_mended = has_mended or following.request is not None
            self._close_round()
            await self._extend_hold(prompt, rounds)
            if self._affordable_output(prompt, rounds) < LEAST_OUTPUT_TOKENS:
                self._warn("agents.budget_spent", "What the run could afford was used up before the plan was complete.")
                self._transcript.replace(following.text)
                return self._succeeded()
            self._transcript.clear()

    async def _next_round(self, *, may_mend: bool) -> Round | None:
        """What to say to the model next; None when its answer stands."""
        if not self._is_held_back:
            return None
        text = self._transcript.text
        if self._calls:
            return Round(text=text, calls=tuple(self._calls), results=await self._use_tools())
        try:
            self._transcript.replace(read_plan(text))
        except PlanInvalid as error:
            if may_mend:
                return Round(text=text, request=repair_request(error.problems))
            self._warn(
                "agents.plan_invalid", "The answer is not the structured plan asked for; it is given as it came."
            )
        return None

    async def _use_tools(self) -> dict[str, str]:
        results: dict[str, str] = {}
        for call in self._calls:

            async def use(conn: Connection, call: ToolCall = call) -> str:
                return await use_tool(conn, call.name, call.arguments, user_id=self._run.user_id)

            results[call.id] = await self._persist(use)
            await self._append(RunEvent(seq=self._seq + 1, type="run.tool", data={"name": call.name}))
        return results

    def _close_round(self) -> None:
        self._spent = self._usage()
        self._reported = None
        self._calls.clear()
        self._input_tokens = 0

    async def _extend_hold(self, prompt: Prompt, rounds: list[Round]) -> None:
        """Before the next round, and only by what it needs; never beyond the output that was asked for."""
        run = self._run
        wanted = run.max_output_tokens - self._spent.output_tokens
        if wanted < LEAST_OUTPUT_TOKENS or self._affordable_output(prompt, rounds) >= wanted:
            return
        tokens = self._spent.input_tokens + run.max_output_tokens + _round_tokens(prompt, rounds)
        if await self._engine.holds.extend(run.id, run.user_id, tokens=tokens):
            self._held_tokens = tokens

    def _affordable_output(self, prompt: Prompt, rounds: list[Round]) -> int:
        allowed = self._run.max_output_tokens - self._spent.output_tokens
        if not rounds:
            return allowed
        spent = self._spent.input_tokens + self._spent.output_tokens
        return min(allowed, self._held_tokens - spent - _round_tokens(prompt, rounds))

    def _warn(self, code: str, detail: str) -> None:
        self._warnings.append(OutputWarning(code=code, detail=detail))

    async def _follow(self, outputs: AsyncGenerator[ModelOutput, None], *, deadline: float) -> Ending | None:
        """Take what the model sends until it ends or one of the limits or a stop comes first.

        Returns None when the model has said all it has to say in this round. Listening goes on beside the writing, and
        wakes it only where there is something to do: a model's pieces are many, its rows are to be few.
        """
        self._heard_at = time.monotonic()
        self._patience_s = self._engine.first_token_limit_s
        listening = asyncio.create_task(self._listen(outputs))
        listening.add_done_callback(lambda _: self._news.set())
        try:
            while True:
                if self._stop.done():
                    return self._stopped(self._stop.result())
                if listening.done():
                    listening.result()
                    return None
                now = time.monotonic()
                if now >= deadline:
                    return self._timed_out(f"The run took longer than {self._engine.total_limit_s:g} seconds.")
                if now >= self._heard_at + self._patience_s:
                    return self._timed_out(f"The model was silent for {self._patience_s:g} seconds.")
                if self._transcript.is_due(now=now):
                    await self._flush()
                else:
                    until = min(deadline, self._heard_at + self._patience_s, self._transcript.due_at)
                    await self._sleep(until=until)
        finally:
            if not listening.done():
                # Ends the model's work at once: the generator is closed where it stands.
                await end([listening], patience_s=1)
            if not listening.cancelled():
                listening.exception()  # whatever it was, the run has its end: nobody else has to hear of it

    async def _listen(self, outputs: AsyncGenerator[ModelOutput, None]) -> None:
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                self._take(output)
                if self._transcript.is_full:
                    # No faster than it is written down; it also gives way to others where a model never pauses.
                    self._has_room.clear()
                    await self._has_room.wait()

    async def _sleep(self, *, until: float) -> None:
        await woken(self._news, within_s=max(0.0, until - time.monotonic()))
        self._news.clear()

    def _take(self, output: ModelOutput) -> None:
        self._heard_at = time.monotonic()
        match output:
            case TextDelta(text=text):
                self._patience_s = self._engine.idle_limit_s
                if self._transcript.add(text):
                    self._news.set()
            case UsageReport(usage=usage):
                self._reported = usage
            case ModelChosen(name=name):
                self._model_used = name
            case ToolCall():
                self._calls.append(output)
            case _:
                assert_never(output)

    async def _flush(self) -> None:
        # Taken before the write, during which more may come.
        text = self._transcript.show(now=time.monotonic())
        await self._append(RunEvent(seq=self._seq + 1, type="run.delta", data={"text": text}))
        if not self._has_room.is_set():
            self._heard_at = time.monotonic()  # what we were not listening to was no silence
            self._has_room.set()

    async def _append(self, event: RunEvent) -> None:
        append = Append(run_id=self.run_id, lease_token=self.lease_token, event=event)
        if not await self._patiently(lambda: self._engine.scribe.append(append)):
            raise Stopped
        self._seq = event.seq
        self._engine.mirror.offer(self.run_id, [event])

    async def _finish(self, ending: Ending) -> None:
        finish = Finish(
            run_id=self.run_id,
            user_id=self._run.user_id,
            agent_type=self._run.agent_type,
            lease_token=self.lease_token,
            ending=ending,
            last_seq=self._seq,
            last_text=self._transcript.rest(is_whole=ending.outcome is Outcome.SUCCEEDED),
            traceparent=current_traceparent(),
        )
        ended = await self._patiently(lambda: self._engine.scribe.finish(finish))
        if ended is None:
            raise Stopped
        self._engine.mirror.offer(self.run_id, finish.events(), ended=ended)

    async def _persist(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do one transaction; the work is safe to repeat."""

        async def transact() -> T:
            async with self._engine.database.transaction() as conn:
                return await work(conn)

        return await self._patiently(transact)

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work, waiting out an absent database: the run goes on where it was when it is back.

        Raises Stopped if the process ends or the lease is lost meanwhile.
        """
        while True:
            try:
                return await work()
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
                return Ending.cancelled(usage=self._usage(), output=self._transcript.seen, model_used=self._model_used)
            case StopReason.FENCED | StopReason.SHUTDOWN:
                raise Stopped
            case _:
                assert_never(reason)

    def _succeeded(self) -> Ending:
        text = self._transcript.text
        return Ending.succeeded(
            output=text,
            usage=self._usage(),
            model_used=self._model_used or "none",
            warnings=(*self._warnings, *check_output(text)),
            atoms=self._atoms,
        )

    def _failed(self, error: RunError, *, reported: Usage | None) -> Ending:
        usage = self._spent.plus(reported or self._reported or Usage())
        return Ending.failed(error, usage=usage, output=self._transcript.seen, model_used=self._model_used)

    def _timed_out(self, detail: str) -> Ending:
        error = RunError(code="agents.run_timed_out", detail=f"{detail} Nothing was charged.")
        return Ending.timed_out(error, usage=self._usage(), output=self._transcript.seen, model_used=self._model_used)

    def _usage(self) -> Usage:
        """What the provider reported, or what we count where it has not come to that, within what was held."""
        if self._reported is not None:
            return self._spent.plus(self._reported)
        if not self._input_tokens:
            return self._spent
        counted = Usage(
            input_tokens=self._input_tokens, output_tokens=count_tokens(self._transcript.text), is_estimated=True
        )
        total = self._spent.plus(counted)
        return replace(total, output_tokens=min(total.output_tokens, self._run.max_output_tokens))


def _round_tokens(prompt: Prompt, rounds: list[Round]) -> int:
    """What a call is sent: the prompt and all rounds so far, by our own count."""
    said = [text for it in rounds for text in (it.text, it.request or "", *it.results.values())]
    return prompt.input_tokens + sum(map(count_tokens, said))
