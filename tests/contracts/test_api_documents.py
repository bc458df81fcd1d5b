"""The public surface is what was reviewed: OpenAPI, AsyncAPI, and what the gateway says of routes it passes on."""

import json
import re
from typing import Any

import pytest

from services.gateway.admin.acts import ACTS
from services.gateway.passthrough import PASSED
from services.gateway.reference import domain
from tests.contracts.documents import ASYNCAPI_FILE, OPENAPI_FILE, current

CURRENT = dict(current())
OPENAPI: dict[str, Any] = json.loads(CURRENT[OPENAPI_FILE])
OPERATIONS = [
    pytest.param(path, method, one, id=f"{method} {path}") for path, method, one in domain.operations(OPENAPI)
]
# What a sender of webhooks posts is the sender's to define, and sign-in ignores what it does not know.
UNDESCRIBED = ("/health", "/webhooks/", "/billing/webhook", "/auth/v1")


@pytest.mark.parametrize("file", CURRENT, ids=lambda file: file.name)
def test_a_document_is_what_was_reviewed(file: Any) -> None:
    assert file.read_text(encoding="utf-8") == CURRENT[file], "run make contracts, and review what changed"


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_operation_has_an_example_of_its_answer_and_all_its_refusals(
    path: str, method: str, operation: dict[str, Any]
) -> None:
    if path.startswith("/health"):
        return
    assert domain.REFUSALS.keys() <= operation["responses"].keys()
    if path.startswith(UNDESCRIBED):
        return
    done = {status: one for status, one in operation["responses"].items() if status < "300"}
    assert done
    for status, answer in done.items():
        media = answer.get("content", {})
        assert status == "204" or any("example" in one for one in media.values()), f"answers.json: {method} {path}"


def test_every_passed_route_says_what_it_takes() -> None:
    taken = domain.read("passed.json")["routes"]
    names = {f"{one.method} {one.path}" for one in PASSED} | {f"{one.method} /v1/admin{one.path}" for one in ACTS}
    assert {name for name in names if name.startswith(("POST", "PUT"))} - taken.keys() == set()


def test_no_internal_route_is_public() -> None:
    assert not [path for path in OPENAPI["paths"] if "internal" in path]


def test_every_reference_leads_somewhere() -> None:
    for document in (OPENAPI, json.loads(CURRENT[ASYNCAPI_FILE])):
        for reference in _references(document):
            here: Any = document
            for part in reference.removeprefix("#/").split("/"):
                assert part in here, reference
                here = here[part]


def _references(document: Any) -> set[str]:
    return set(re.findall(r'"\$ref": "(#/(?!\$defs)[^"]+)"', json.dumps(document)))
