"""The base of everything a client sends: pydantic alone, so that pure modules may say what an input is."""

from pydantic import BaseModel, ConfigDict


class Input(BaseModel):
    """A request body: unknown fields are refused, so that a misspelt one is told instead of ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)
