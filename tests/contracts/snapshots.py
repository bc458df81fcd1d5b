"""The reviewed JSON schema of every event, one file each: `python -m tests.contracts.snapshots [--write]`.

An event may gain optional fields under its version. `--write` refuses anything else: that is a new class with the next
version. An event that was never published may still be changed: delete its file, and write it anew.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from libs.common.events import CATALOGUE, Event

FOLDER: Final = Path(__file__).parent / "events"
Schema = Mapping[str, Any]
_PROSE: Final = ("description", "title", "examples")


def schema_of(event: type[Event]) -> dict[str, Any]:
    """What a consumer may rely on: the schema of the envelope's `data`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:venture:event:{event.type}",
        **event.model_json_schema(),
    }


def file_of(event_type: str) -> Path:
    return FOLDER / f"{event_type}.json"


def render(schema: Schema) -> str:
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def incompatibilities(reviewed: Schema, current: Schema, *, place: str = "data") -> Iterator[str]:
    """What a consumer of the reviewed schema could stumble over in the current one. Words are not a contract."""
    old_fields, new_fields = _fields(reviewed), _fields(current)
    yield from (f"{place}.{name} is gone" for name in old_fields if name not in new_fields)
    for name in sorted(set(current.get("required", ())) ^ set(reviewed.get("required", ()))):
        if name in new_fields:
            yield f"{place}.{name} has become {'required' if name in current.get('required', ()) else 'optional'}"
    for name, old_field in old_fields.items():
        if name in new_fields:
            yield from incompatibilities(old_field, new_fields[name], place=f"{place}.{name}")
    kept = ("properties", "required", *_PROSE)
    before = {key: value for key, value in reviewed.items() if key not in kept}
    after = {key: value for key, value in current.items() if key not in kept}
    if before != after:
        yield f"{place} means something else: {json.dumps(before)} has become {json.dumps(after)}"


def _fields(schema: Schema) -> Mapping[str, Schema]:
    return schema.get("properties", {})


def differences() -> Iterator[str]:
    """What the reviewed files and the code do not agree on."""
    for event_type, event in CATALOGUE.items():
        file = file_of(event_type)
        if not file.is_file():
            yield f"{file.name}: this event has no reviewed contract yet"
        elif file.read_text(encoding="utf-8") != render(schema_of(event)):
            yield f"{file.name}: the event and its reviewed contract differ"
    known = {file_of(event_type) for event_type in CATALOGUE}
    yield from (f"{file.name}: no event has this contract" for file in FOLDER.iterdir() if file not in known)


def write() -> list[str]:
    """Write every file that may be written; return why the others may not."""
    refused: list[str] = []
    for event_type, event in CATALOGUE.items():
        file, schema = file_of(event_type), schema_of(event)
        reviewed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else schema
        broken = list(incompatibilities(reviewed, schema))
        if broken:
            refused += [f"{file.name}: {reason}" for reason in broken]
        else:
            file.write_text(render(schema), encoding="utf-8")
    return refused


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.contracts.snapshots", description="Compare event contracts.")
    parser.add_argument("--write", action="store_true", help="write the contracts anew; compatible changes only")
    refused = write() if parser.parse_args(argv).write else []
    found = [*refused, *differences()]
    sys.stdout.writelines(f"{line}\n" for line in found)
    sys.stdout.write(f"Event contracts: {len(CATALOGUE)} events, {len(found)} findings.\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
