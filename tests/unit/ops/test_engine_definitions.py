import base64
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from ops.engines.definitions import OPERATOR, SERVICES, hash_password, permissions, render_definitions

PASSWORDS = {name: f"password-of-{name}" for name in (OPERATOR, *SERVICES)}


def rendered(vhosts: Sequence[str] = ("venture",)) -> dict[str, Any]:
    return json.loads(render_definitions(vhosts=vhosts, passwords=PASSWORDS))


def may(user: str, what: str, resource: str) -> bool:
    return re.search(permissions(user)[what], resource) is not None


def test_there_is_a_user_for_each_service_and_the_operator_and_no_guest() -> None:
    assert {user["name"] for user in rendered()["users"]} == {"operator", "gateway", "billing", "metering", "agents"}


def test_no_password_is_in_the_file() -> None:
    text = json.dumps(rendered())
    assert not [password for password in PASSWORDS.values() if password in text]


def test_a_hash_is_salted_sha256() -> None:
    decoded = base64.b64decode(hash_password("billing", "x"))
    assert decoded[4:] == hashlib.sha256(decoded[:4] + b"x").digest()


def test_the_same_input_gives_the_same_file() -> None:
    assert rendered() == rendered()


@pytest.mark.parametrize(
    "resource", ["billing.retry.5s", "billing.home", "billing.agents.run_finished.v1", "billing.x.v1.parked"]
)
def test_a_service_may_do_anything_with_its_own(resource: str) -> None:
    assert all(may("billing", what, resource) for what in ("configure", "write", "read"))


@pytest.mark.parametrize(
    "resource",
    ["agents.x.v1", "billing", "xbilling.y", "eventsx", "retry.5s", "amq.topic", "amq.default", "billingx.y", ""],
)
def test_a_service_may_not_touch_anything_else(resource: str) -> None:
    assert not any(may("billing", what, resource) for what in ("configure", "write", "read"))


def test_a_service_listens_and_publishes_on_the_shared_exchange_but_does_not_own_it() -> None:
    assert may("billing", "write", "events")
    assert may("billing", "read", "events")
    assert not may("billing", "configure", "events")
    assert [(it["name"], it["vhost"], it["type"]) for it in rendered()["exchanges"]] == [("events", "venture", "topic")]


def test_a_service_may_publish_only_its_own_events() -> None:
    (rule,) = [rule for rule in rendered()["topic_permissions"] if rule["user"] == "billing"]
    assert rule["exchange"] == "events"
    assert re.search(rule["write"], "billing.invoice_paid.v1")
    assert not re.search(rule["write"], "agents.run_finished.v1")


def test_the_operator_may_do_everything_in_every_vhost() -> None:
    made = rendered(("test0", "test1"))
    rules = [rule for rule in made["permissions"] if rule["user"] == "operator"]
    assert [rule["vhost"] for rule in rules] == ["test0", "test1"]
    assert all(rule["configure"] == rule["write"] == rule["read"] == ".*" for rule in rules)
