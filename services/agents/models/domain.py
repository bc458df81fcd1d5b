"""Routes from runs to models, the patience of retries, and the breaker of a provider. No clock: times come in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

OFFLINE: Final = "offline"
MAX_CALLS: Final = 3
"""Calls one attempt of a run may make for one answer, all models together."""
FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 8.0
BREAKER_THRESHOLD: Final = 5
BREAKER_REST_S: Final = 15.0


class ModelNotAvailable(Exception):
    """The run names a model that its tier may not use or that nobody has configured. `detail` is for the user."""

    code = "agents.model_not_available"

    def __init__(self, name: str) -> None:
        self.detail = f"The model {name} is not available on your plan."
        super().__init__(self.detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """`provider:model`; `offline` is both."""

    provider: str
    model: str

    @classmethod
    def parse(cls, text: str) -> "ModelName":
        """Without a provider, the family tells it: Claude is Anthropic's, all else is asked of the OpenAI protocol."""
        provider, colon, model = text.partition(":")
        if text == OFFLINE:
            return cls(provider=OFFLINE, model=OFFLINE)
        if colon:
            return cls(provider=provider, model=model)
        return cls(provider="anthropic" if text.startswith("claude") else "openai", model=text)

    def __str__(self) -> str:
        return OFFLINE if self.provider == OFFLINE else f"{self.provider}:{self.model}"


def route(
    requested: str | None, *, allowed: Sequence[str] | None, defaults: Sequence[str], configured: frozenset[str]
) -> tuple[ModelName, ...]:
    """The models to try, in order. `allowed` is the tier's list; None allows every configured provider's models.

    Without any configured provider the offline model stands in for whatever was asked. Raises ModelNotAvailable.
    """
    offline = ModelName.parse(OFFLINE)
    if not configured:
        return (offline,)
    usable = configured | {OFFLINE}
    listed = [
        name for name in map(ModelName.parse, defaults if allowed is None else allowed) if name.provider in usable
    ]
    if requested is None:
        return tuple(dict.fromkeys(listed)) or (offline,)
    wanted = ModelName.parse(requested)
    if wanted.provider not in usable or (allowed is not None and wanted not in listed and wanted != offline):
        raise ModelNotAvailable(requested)
    if wanted == offline:
        return (offline,)
    # A fallback is another real model: nobody who asked for one wants the offline answer instead.
    return tuple(dict.fromkeys([wanted, *(name for name in listed if name != offline)]))


def pause_s(failures: int, *, retry_after_s: float | None, chance: float) -> float:
    """How long to wait after the n-th failure: what the provider says, else doubling; `chance` in [0, 1) jitters."""
    doubled = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1))
    if retry_after_s is not None:
        return retry_after_s + chance * FIRST_PAUSE_S
    return doubled * (0.5 + chance / 2)


class Breaker:
    """Leaves a provider alone after five failures in a row; after a rest one call at a time asks whether it is back."""

    def __init__(self) -> None:
        self._failures = 0
        self._rests_until = float("-inf")

    def allows(self, *, now_s: float) -> bool:
        """Whether to call. Past the rest the first asker is let through and the rest begins anew for the others."""
        if not self.is_failing:
            return True
        if now_s < self._rests_until:
            return False
        self._rests_until = now_s + BREAKER_REST_S
        return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, *, now_s: float) -> None:
        self._failures += 1
        if self.is_failing:
            self._rests_until = now_s + BREAKER_REST_S

    @property
    def is_failing(self) -> bool:
        """Until a call succeeds, past every rest: where runs are rare, the rests alone are seldom seen by anybody."""
        return self._failures >= BREAKER_THRESHOLD


def tier_models(features: Mapping[str, object]) -> tuple[str, ...] | None:
    """A tier's list of models; None where the plan names none."""
    found = features.get("models")
    if not isinstance(found, list | tuple):
        return None
    return tuple(str(name) for name in found)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
