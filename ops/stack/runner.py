"""What a way of running the stack can do, whichever it is."""

from collections.abc import Mapping
from typing import Protocol

from ops.stack.environments import Addresses


class Runner(Protocol):
    def up(self, values: Mapping[str, str], scale: Mapping[str, int]) -> Addresses:
        """Bring everything up, or into step with what is asked, and say where it is."""
        ...

    def down(self) -> bool:
        """Stop everything and keep the data; False if nothing ran."""
        ...

    def remove_data(self) -> None:
        """Remove what is kept outside the home, once everything is down."""
        ...

    def migrate(self, where: Addresses) -> str:
        """Apply pending migrations to the running database; what the migration runner said."""
        ...

    def pid(self, program: str) -> int | None:
        """The present pid of a program such as `agents-1`, as this machine counts; None while it does not run."""
        ...

    def is_running(self) -> bool: ...

    def show_status(self) -> bool:
        """Print how each part is; True if all are ready."""
        ...

    def follow_logs(self, wanted: str) -> None:
        """Print what is logged until interrupted: of everything, or of what begins with `wanted`."""
        ...
