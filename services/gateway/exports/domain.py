"""How what was gathered becomes a file. Pure."""

import csv
import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, cast

import orjson

Format = Literal["json", "csv"]
Sections = Mapping[str, Any]
"""What was gathered, by name: one object, or a list of them. None: that part of the product is switched off."""

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")
# Dates inside a ZIP begin in 1980; a fixed one makes the same export the same bytes.
_ZIP_DATE: Final = (1980, 1, 1, 0, 0, 0)


def as_json(sections: Sections) -> bytes:
    return orjson.dumps(sections, default=str, option=orjson.OPT_INDENT_2)


def as_zip(sections: Sections) -> bytes:
    """One CSV file a section (RFC 4180), zipped; what is nested is JSON within its cell."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sections.items():
            rows = cast("list[Mapping[str, Any]]", content if isinstance(content, list) else [content or {}])
            entry = zipfile.ZipInfo(f"{name}.csv", _ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, _as_csv(rows))
    return packed.getvalue()


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> str:
    """Text that a spreadsheet would take for a formula is given an apostrophe (OWASP, CSV injection)."""
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        return orjson.dumps(value, default=str).decode()
    text = str(cast("object", value))
    return f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA_STARTS) else text
