"""Plans are data: `config/plans.toml`, read and checked once at start: a typo stops a deploy, not a user."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_PATH: Final = Path(__file__).parents[2] / "config" / "plans.toml"


class Metered(BaseModel):
    """A metric that is billed by use: the event name of Stripe's meter, and the lookup key of the price per unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    meter: str = Field(min_length=1, max_length=100)
    stripe_lookup_key: str


class Tier(BaseModel):
    """What a tier may use. A metric without a limit is unlimited. `price_minor` is in the currency's minor unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
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
