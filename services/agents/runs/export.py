"""Runs as a file for spreadsheets. Pure."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

COLUMNS: Final = (
    "id",
    "created_at",
    "finished_at",
    "status",
    "agent_type",
    "model_used",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "task",
    "output",
)
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def as_csv(runs: Sequence[Mapping[str, Any]]) -> str:
    """RFC 4180 with a header line. Text that a spreadsheet would take for a formula is given an apostrophe (OWASP)."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for run in runs:
        flat = {**run, **run["usage"], "cost_usd": orjson.dumps(run["cost_usd"]).decode()}
        writer.writerow([_cell(flat[column]) for column in COLUMNS])
    return out.getvalue()


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
