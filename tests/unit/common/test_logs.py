import io
import json
import logging
from typing import Any

import pytest

from libs.common.logs import GATHER_MOST, OrderedHandler
from tests.harness.patience import eventually


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def handler(shown: io.StringIO) -> OrderedHandler:
    return OrderedHandler(shown, service="a-service")


def said(shown: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shown.getvalue().splitlines()]


async def test_lines_are_gathered_for_a_moment_and_written_at_once(handler: OrderedHandler, shown: io.StringIO) -> None:
    for number in range(3):
        handler.lines.add("request", {"number": number}, trace_id="ab")
    assert said(shown) == []

    async def lines() -> list[dict[str, Any]]:
        return said(shown)

    first, *others = await eventually(lines)
    assert str(first.pop("timestamp")).endswith("Z")
    assert first == {"event": "request", "number": 0, "level": "info", "service": "a-service", "trace_id": "ab"}
    assert [line["number"] for line in others] == [1, 2]


async def test_many_lines_are_not_gathered_until_a_pipe_is_full(handler: OrderedHandler, shown: io.StringIO) -> None:
    for number in range(GATHER_MOST + 1):
        handler.lines.add("request", {"number": number}, trace_id=None)
    assert [line["number"] for line in said(shown)] == list(range(GATHER_MOST))


async def test_what_a_logger_says_comes_after_the_lines_that_were_there_before(
    handler: OrderedHandler, shown: io.StringIO
) -> None:
    handler.lines.add("request", {}, trace_id=None)
    handler.emit(logging.makeLogRecord({"msg": '{"event": "something_else"}'}))
    assert [line["event"] for line in said(shown)] == ["request", "something_else"]


def test_without_a_loop_a_line_is_written_at_once(handler: OrderedHandler, shown: io.StringIO) -> None:
    handler.lines.add("message_handled", {}, trace_id=None)
    assert [line["event"] for line in said(shown)] == ["message_handled"]
