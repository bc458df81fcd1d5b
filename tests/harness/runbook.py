"""docs/RUNBOOK.md as data: its code blocks with what stands below each about running it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.home import ROOT

RUNBOOK: Final = ROOT / "docs" / "RUNBOOK.md"
_BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```\n((?:<!--.*?-->\n)*)", re.MULTILINE | re.DOTALL)
_NOTE: Final = re.compile(r"<!-- (not run|prints|exits): (.*?) -->")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    language: str
    text: str
    line: int
    not_run: str
    """Why it cannot be run; empty for a block that is."""
    prints: str
    exits: int


def read_blocks(path: Path = RUNBOOK) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    blocks: list[Block] = []
    for match in _BLOCK.finditer(text):
        notes = dict(_NOTE.findall(match[3]))
        blocks.append(
            Block(
                language=match[1],
                text=match[2],
                line=text[: match.start()].count("\n") + 1,
                not_run=notes.get("not run", ""),
                prints=notes.get("prints", ""),
                exits=int(notes.get("exits", "0").partition(",")[0]),
            )
        )
    return blocks


def statements(sql: str) -> list[str]:
    """The statements of a block, without their comments."""
    bare = re.sub(r"--[^\n]*", "", sql)
    return [statement.strip() for statement in bare.split(";") if statement.strip()]
