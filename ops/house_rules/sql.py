"""The rules about SQL, in Python's literals and in the migrations: locks name their race, columns are listed."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ops.house_rules.source import Finding, Function, Source

_STATEMENT: Final = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|PERFORM|LOCK)\b")
_CLAUSE: Final = re.compile(
    # A policy's FOR UPDATE is no lock, and ON CONFLICT inside a comment is the comment that is asked for.
    r"\bFOR (?:NO KEY UPDATE|KEY SHARE|UPDATE(?! TO\b)|SHARE)\b|\bSKIP LOCKED\b|\bON CONFLICT\b"
    r"|\bpg_(?:try_)?advisory_\w+|\bLOCK TABLE\b"
)
_EVERY_COLUMN: Final = re.compile(r"\b(?:SELECT|RETURNING)\s+(?:DISTINCT\s+)?(?:\w+\.)?\*")
_LOCK_RULE: Final = "explained-locks"
_LOCK_MESSAGE: Final = "has no comment that names the race it closes"


def explained_locks(source: Source) -> Iterator[Finding]:
    """A comment stands beside or above the clause in the SQL, or the function's docstring or comments name the clause.

    Not in the emulators: each has a SQLite file and one connection to it, and so no race to name.
    """
    for literal in _sql_literals(source):
        function = source.innermost_function(literal.line)
        prose = _prose(source, function) if function is not None else ""
        for offset, clause in _unexplained(literal.sql):
            line = literal.line + offset
            name = "advisory lock" if clause.startswith("pg_") else clause
            if name not in prose and line not in source.comments:
                yield Finding(path=source.path, line=line, rule=_LOCK_RULE, message=f"{clause} {_LOCK_MESSAGE}")


def explained_locks_in_migration(path: str, text: str) -> Iterator[Finding]:
    for offset, clause in _unexplained(text):
        yield Finding(path=path, line=offset + 1, rule=_LOCK_RULE, message=f"{clause} {_LOCK_MESSAGE}")


def listed_columns(source: Source) -> Iterator[Finding]:
    """A column that is added later changes no result, and a reader sees what is read. Tests may look at whole rows."""
    for literal in _sql_literals(source):
        for match in _EVERY_COLUMN.finditer(_without_comments(literal.sql)):
            line = literal.line + literal.sql[: match.start()].count("\n")
            yield Finding(path=source.path, line=line, rule="listed-columns", message="list the columns instead of *")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Literal:
    sql: str
    line: int


def _sql_literals(source: Source) -> Iterator[_Literal]:
    if source.is_in("devkit", "ops/house_rules") or source.is_test:
        return
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Constant) or node in source.bare_strings:
            continue
        if isinstance(node.value, str) and _STATEMENT.search(node.value):
            yield _Literal(sql=node.value, line=node.lineno)


def _unexplained(sql: str) -> Iterator[tuple[int, str]]:
    """Line offset and text of each locking clause without a `--` comment on its line or on the line above."""
    lines = sql.splitlines()
    for offset, line in enumerate(lines):
        statement, dashes, _ = line.partition("--")
        above = lines[offset - 1].strip() if offset else ""
        if dashes or above.startswith("--"):
            continue
        yield from ((offset, match.group()) for match in _CLAUSE.finditer(statement))


def _without_comments(sql: str) -> str:
    return re.sub(r"--[^\n]*", lambda comment: " " * len(comment.group()), sql)


def _prose(source: Source, function: Function) -> str:
    lines = range(function.lineno, (function.end_lineno or function.lineno) + 1)
    comments = [source.comments[line] for line in lines if line in source.comments]
    return "\n".join([ast.get_docstring(function) or "", *comments])
