"""What every command shares: how to answer (table or JSON), how to ask before a change, and who is acting."""

import getpass
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from libs.common.clock import iso_millis
from ops.failure import Failure
from ops.venture.access import Access, find_access

DONE: Final = 0
NOT_WELL: Final = 1  # the command worked, and what it looked at is not as it should be; or it could not work
USAGE: Final = 2
NOT_CONFIRMED: Final = 3
NOT_FOUND: Final = 4

Row = Mapping[str, Any]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables and sentences.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be changed; change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before changing.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")]


class NotFound(Failure):
    """What was named does not exist."""


class NotConfirmed(Failure):
    """The person said no, or there was nobody to ask."""


def _console() -> Console:
    # A pipe has no width of its own: what is cut for a terminal would be cut for grep.
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)


@dataclass(slots=True, kw_only=True)
class Desk:
    as_json: bool = False
    dry_run: bool = False
    yes: bool = False
    _access: Access | None = None
    _out: Console = field(default_factory=_console)

    @property
    def access(self) -> Access:
        if self._access is None:
            self._access = find_access()
        return self._access

    @property
    def actor(self) -> str:
        """Who is at the keyboard, as far as this machine knows."""
        return f"operator:{os.environ.get('SUDO_USER') or getpass.getuser()}"

    def say(self, text: str) -> None:
        """For people; with --json standard output is the answer's alone."""
        if not self.as_json:
            self._out.print(escape(text))

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def table(self, rows: Sequence[Row], *, columns: Sequence[str], empty: str = "Nothing.") -> None:
        if self.as_json:
            self.answer(rows)
            return
        if not rows:
            self._out.print(escape(empty))
            return
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(escape(text_of(row.get(column))) for column in columns))
        self._out.print(table)

    def facts(self, facts: Row) -> None:
        """What is known of one thing, a line each; lists as tables below them. Nothing with --json."""
        lists: dict[str, list[Row]] = {name: value for name, value in facts.items() if isinstance(value, list)}
        if self.as_json:
            return
        width = max((len(name) for name in facts), default=0)
        for name, value in facts.items():
            if name not in lists:
                self.say(f"{name:{width}}  {text_of(value)}")
        for name, rows in lists.items():
            self.say(f"\n{name}: {len(rows) or 'none'}")
            if rows:
                self.table(rows, columns=list(rows[0]))

    def answer(self, value: Any) -> None:
        """The JSON answer; nothing without --json."""
        if self.as_json:
            print(json.dumps(value, default=plain, indent=1))

    def confirm(self, question: str) -> None:
        """Raises NotConfirmed unless --yes, --dry-run, or a person who answers yes."""
        if self.yes or self.dry_run:
            return
        if not sys.stdin.isatty():
            raise NotConfirmed(f"{question} Nobody is here to ask: repeat with --yes.")
        if not typer.confirm(question):
            raise NotConfirmed("Nothing was changed.")

    def report(self, sentence: str, facts: Row) -> None:
        """The end of a change: what was done, or on a dry run what would have been."""
        self.answer({**facts, "dry_run": self.dry_run})
        self.say(f"Dry run, nothing was changed. Without --dry-run: {sentence}" if self.dry_run else sentence)


def plain(value: Any) -> Any:
    return iso_millis(value) if isinstance(value, datetime) else str(value)


def text_of(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return iso_millis(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value, default=plain) if isinstance(value, dict | list) else str(value)


def leave(code: int) -> NoReturn:
    raise typer.Exit(code)
