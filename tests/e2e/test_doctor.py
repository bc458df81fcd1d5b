"""Doctor on a live stack, small: one fault of each kind, named with its section and gone with the heal."""

import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest

from ops.stack.stack import Stack
from tests.harness.live import park_one
from tests.harness.operator import Operator
from tests.harness.patience import eventually


@pytest.fixture
def operator(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(stack, capsys)


async def failed(operator: Operator) -> dict[str, Any]:
    """Failing checks with their sections."""
    answer = await asyncio.to_thread(operator.venture, "doctor", "--json")
    assert answer.code == (1 if answer.json["status"] == "failed" else 0)
    return {row["check"]: row["runbook"] for row in answer.json["checks"] if row["status"] == "failed"}


async def test_a_parked_message_is_named_and_gone_once_it_is_sent_back(
    operator: Operator, environment: Mapping[str, str]
) -> None:
    message_id = await park_one(environment)

    async def is_named() -> bool:
        found = await failed(operator)
        return (found.get("parked"), found.get("parked_messages")) == ("parked-messages", "parked-messages")

    await eventually(is_named, within_s=20, every_s=0.5)
    await asyncio.to_thread(operator.ok, "parked", "replay", message_id, "--yes")

    async def is_well() -> bool:
        return not await failed(operator)

    await eventually(is_well, within_s=30, every_s=0.5)


async def test_a_service_that_does_not_answer_is_named(stack: Stack, operator: Operator) -> None:
    pid = stack.pid("metering")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert (await failed(operator)).get("answers") == "service-down"
    finally:
        os.kill(pid, signal.SIGCONT)

    async def is_well() -> bool:
        return not await failed(operator)

    await eventually(is_well, within_s=30, every_s=0.5)
