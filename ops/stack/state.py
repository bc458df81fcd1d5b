"""What a home remembers between commands: how it runs, on which ports, and with which settings."""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from ops.files import write_private
from ops.home import Home

Runner = Literal["native", "compose"]


@dataclass(slots=True, kw_only=True)
class State:
    runner: Runner = "native"
    ports: dict[str, int] = field(default_factory=dict[str, int])
    # The settings in force, for the commands that only look. They are in .env or in the processes anyway.
    values: dict[str, str] = field(default_factory=dict[str, str])


def exists(home: Home) -> bool:
    return (home.run / "state.json").exists()


def load(home: Home) -> State:
    path = home.run / "state.json"
    return State(**json.loads(path.read_text())) if path.exists() else State()


def save(home: Home, state: State) -> None:
    write_private(home.run / "state.json", json.dumps(asdict(state), indent=1))
