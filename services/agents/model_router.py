"""Chooses the models of a run and calls them with patience: retries, fallbacks, a breaker and a bulkhead per provider.

Only a call that has said nothing yet is made again: what the user has read is never silently said anew.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from libs.common.plans import Plans
from services.agents.models.domain import MAX_CALLS, OFFLINE, Breaker, ModelName, pause_s, route, tier_models
from services.agents.ports import (
    ModelChosen,
    ModelFailed,
    ModelOutput,
    ModelProvider,
    ModelWish,
    Round,
    TextDelta,
    ToolCall,
    ToolSpec,
)
from services.agents.prompts.domain import Prompt
from services.agents.runs.domain import RunError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A configured provider: how to open one of its models, its breaker, and how many calls it may have at once."""

    open_model: Callable[[str], ModelProvider]
    slots: asyncio.Semaphore
    breaker: Breaker = field(default_factory=Breaker)


class ModelRouter:
    """`choose` is the port's ChooseModel. `retry_budget_s` bounds all waiting of one answer taken together."""

    def __init__(
        self,
        *,
        providers: Mapping[str, Provider],
        offline: ModelProvider,
        plans: Plans,
        defaults: Sequence[str],
        retry_budget_s: float,
    ) -> None:
        self._providers = providers
        self._offline = offline
        self._plans = plans
        self._defaults = defaults
        self._retry_budget_s = retry_budget_s

    def choose(self, wish: ModelWish) -> ModelProvider:
        names = route(
            wish.requested,
            allowed=tier_models(self._plans.tier(wish.tier).features),
            defaults=self._defaults,
            configured=frozenset(self._providers),
        )
        if names[0].provider == OFFLINE:
            return self._offline
        real = [(name, self._providers[name.provider]) for name in names if name.provider != OFFLINE]
        return PatientModel(real, retry_budget_s=self._retry_budget_s)

    def failing_providers(self) -> list[str]:
        return sorted(name for name, it in self._providers.items() if it.breaker.is_failing)


class PatientModel:
    """The models of one run in order of preference, called until one answers or patience ends."""

    def __init__(self, models: Sequence[tuple[ModelName, Provider]], *, retry_budget_s: float) -> None:
        self._models = models
        self._retry_budget_s = retry_budget_s

    @property
    def name(self) -> str:
        return str(self._models[0][0])

    async def stream(
        self, prompt: Prompt, *, max_output_tokens: int, tools: Sequence[ToolSpec] = (), rounds: Sequence[Round] = ()
    ) -> AsyncGenerator[ModelOutput, None]:
        give_up_at = time.monotonic() + self._retry_budget_s
        calls = 0
        last = ModelFailed(RunError(code="agents.model_unavailable", detail="No model is available at the moment."))
        for name, provider in self._models:
            failures = 0
            while calls < MAX_CALLS and provider.breaker.allows(now_s=time.monotonic()):
                calls += 1
                has_spoken = False
                try:
                    async with _slot(provider, until=give_up_at):
                        yield ModelChosen(name=str(name))
                        model = provider.open_model(name.model)
                        outputs = model.stream(prompt, max_output_tokens=max_output_tokens, tools=tools, rounds=rounds)
                        async with contextlib.aclosing(outputs):
                            async for output in outputs:
                                has_spoken = has_spoken or isinstance(output, TextDelta | ToolCall)
                                yield output
                    provider.breaker.succeeded()
                except ModelFailed as failure:
                    last, failures = failure, failures + 1
                    _note(provider, failure)
                    log.warning("model_call_failed", model=str(name), code=failure.error.code, call=calls)
                    if has_spoken:
                        raise
                    pause = pause_s(failures, retry_after_s=failure.retry_after_s, chance=random.random())  # noqa: S311
                    if not failure.is_retryable or time.monotonic() + pause > give_up_at:
                        break  # the next model of the list
                    await asyncio.sleep(pause)
                else:
                    return
        raise last


def _note(provider: Provider, failure: ModelFailed) -> None:
    if failure.is_illness:
        provider.breaker.failed(now_s=time.monotonic())
    else:
        provider.breaker.succeeded()


@contextlib.asynccontextmanager
async def _slot(provider: Provider, *, until: float) -> AsyncGenerator[None, None]:
    """A place among the provider's calls: one slow provider fills its own places and nobody else's."""
    try:
        async with asyncio.timeout(max(0.0, until - time.monotonic())):
            await provider.slots.acquire()
    except TimeoutError as error:
        busy = RunError(code="agents.model_busy", detail="The model has too many calls in hand; please try again.")
        raise ModelFailed(busy) from error
    try:
        yield
    finally:
        provider.slots.release()
