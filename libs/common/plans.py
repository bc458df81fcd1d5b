"""Plans are data: `config/plans.toml`, read and checked once at start: a typo stops a deploy, not a user."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_PATH: Final = Path(__file__).parents[2] / "config" / "plans.toml"


Aggregation = Literal["count", "sum", "max", "unique", "latest"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class Meter(BaseModel):
    """What of events becomes a number. `event` is the metric events name (by default the meter's own name).

    `reads` is the property of an event's data that matters: the amount of a sum, a maximum or a latest value, or what a
    meter of different values counts. `filter` lets through events whose property is one of those listed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    aggregation: Aggregation = "sum"
    event: Name | None = None
    reads: str = "value"
    filter: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    group_by: tuple[str, ...] = ()

    @property
    def is_additive(self) -> bool:
        """Whether events add up, so that a hold may set an amount aside."""
        return self.aggregation in {"count", "sum"}


class Ingest(BaseModel):
    """How far from now an event may have happened to be counted still, or already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_age_days: int = Field(default=35, ge=1, le=80)
    max_ahead_s: int = Field(default=300, ge=0, le=3600)


class Metered(BaseModel):
    """A metric that is billed by use: the event name of Stripe's meter, and the lookup key of the price per unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    meter: str = Field(min_length=1, max_length=100)
    stripe_lookup_key: str


class Tier(BaseModel):
    """What a tier may use. A metric without a limit is unlimited. `price_minor` is in the currency's minor unit.

    `period` says what limits are counted by: calendar months in UTC, or the subscription's own months.
    `thresholds` are the percentages of a limit that the user is told of when they are reached.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    period: Literal["calendar", "subscription"] = "calendar"
    thresholds: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = (80, 100)
    limits: Mapping[str, int]
    concurrency: int = Field(ge=1)
    rate_factor: int = Field(ge=1)
    features: Mapping[str, Any] = Field(default_factory=dict)
    stripe_lookup_key: str | None = None
    price_minor: int | None = Field(default=None, ge=0)
    currency: str | None = None
    interval: str | None = None
    metered: Mapping[str, Metered] = Field(default_factory=dict[str, Metered])
    """By metric, what is charged by use beside the price."""


class Plans(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tiers: Mapping[str, Tier]
    meters: Mapping[Name, Meter] = Field(default_factory=dict)
    ingest: Ingest = Ingest()

    @model_validator(mode="after")
    def _limits_name_meters(self) -> Self:
        """A limit of a metric nobody counts would never be reached, and never be missed."""
        unknown = {name for tier in self.tiers.values() for name in tier.limits} - self.meters.keys()
        if self.meters and unknown:
            raise ValueError(f"limits of metrics that are no meters: {', '.join(sorted(unknown))}")
        return self

    @property
    def tiers_by_subscription(self) -> list[str]:
        return [name for name, tier in self.tiers.items() if tier.period == "subscription"]

    def tier(self, name: str) -> Tier:
        """The named tier; an unknown name (an operator's typo, a retired plan) gets the free tier, never more."""
        return self.tiers.get(name) or self.tiers["free"]

    def tier_of_lookup_key(self, lookup_key: str | None) -> str | None:
        return next(
            (name for name, tier in self.tiers.items() if lookup_key and tier.stripe_lookup_key == lookup_key), None
        )


def load_plans(path: Path = DEFAULT_PATH) -> Plans:
    """Raises OSError or pydantic.ValidationError: a service without plans must not start."""
    return Plans.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
