"""Event contracts: what was reviewed is what is sent, and what consumers rely on does not change under its version."""

import copy
import json
from typing import Any

import pytest

from libs.common.events import CATALOGUE, Event
from tests.builders import an_event
from tests.contracts.snapshots import FOLDER, differences, file_of, incompatibilities, schema_of

REVIEWED: dict[str, Any] = {
    "type": "object",
    "description": "A fact.",
    "properties": {
        "user_id": {"type": "string", "format": "uuid"},
        "amount_minor": {"type": "integer"},
        "next_at": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "address": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    "required": ["user_id", "amount_minor"],
}


def changed(**fields: Any) -> dict[str, Any]:
    """The reviewed schema with some fields replaced; None takes one away."""
    schema = copy.deepcopy(REVIEWED)
    for name, value in fields.items():
        schema["properties"].pop(name, None)
        if value is not None:
            schema["properties"][name] = value
    return schema


@pytest.mark.parametrize("event_type", CATALOGUE)
def test_an_event_is_what_was_reviewed(event_type: str) -> None:
    reviewed = json.loads(file_of(event_type).read_text(encoding="utf-8"))
    current = schema_of(CATALOGUE[event_type])
    assert list(incompatibilities(reviewed, current)) == [], "make a new class with the next version"
    assert reviewed == current, "run `make contracts` and review what changed"


def test_there_is_one_reviewed_file_for_each_event_and_no_other() -> None:
    assert list(differences()) == []
    assert len(list(FOLDER.iterdir())) == len(CATALOGUE)


def test_an_optional_field_and_better_words_are_compatible() -> None:
    schema = {**changed(note={"type": "string", "default": ""}), "description": "A fact, told better."}
    assert list(incompatibilities(REVIEWED, schema)) == []


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (changed(amount_minor=None), "data.amount_minor is gone"),
        (changed(next_at=None), "data.next_at is gone"),
        ({**REVIEWED, "required": ["user_id"]}, "data.amount_minor has become optional"),
        ({**REVIEWED, "required": ["user_id", "amount_minor", "next_at"]}, "data.next_at has become required"),
        (
            {**changed(note={"type": "string"}), "required": ["user_id", "amount_minor", "note"]},
            "data.note has become required",
        ),
        (changed(amount_minor={"type": "number"}), "data.amount_minor means something else"),
        (changed(user_id={"type": "string"}), "data.user_id means something else"),
        (changed(next_at={"type": "string", "default": ""}), "data.next_at means something else"),
        (changed(address={"type": "object", "properties": {}}), "data.address.city is gone"),
        ({**REVIEWED, "additionalProperties": False}, "data means something else"),
    ],
)
def test_any_other_change_is_not(schema: dict[str, Any], reason: str) -> None:
    (found,) = incompatibilities(REVIEWED, schema)
    assert found.startswith(reason)


@pytest.mark.parametrize("event", CATALOGUE.values(), ids=list(CATALOGUE))
def test_no_event_carries_a_float(event: type[Event]) -> None:
    assert '"number"' not in json.dumps(schema_of(event))


@pytest.mark.parametrize("event", CATALOGUE.values(), ids=list(CATALOGUE))
def test_an_event_names_whom_it_is_about(event: type[Event]) -> None:
    built = an_event(event)
    assert built.subject == str(getattr(built, "user_id", ""))
    assert built.subject
