"""How each ending is billed, and what clients are told of it."""

from services.agents.runs.domain import TERMINAL_EVENT_TYPES, Ending, RunError, RunEvent, Usage

ERROR = RunError(code="agents.x", detail="Something.")
USED = Usage(input_tokens=3, output_tokens=4, cost_micro_usd=5)


def test_only_what_we_cut_ourselves_is_free() -> None:
    assert Ending.succeeded(output="o", usage=USED, model_used="m").is_billable
    assert Ending.failed(ERROR, usage=USED, output=None, model_used="m").is_billable
    assert Ending.cancelled(usage=USED).is_billable
    assert not Ending.cancelled().is_billable
    assert not Ending.timed_out(ERROR, usage=USED, output=None, model_used="m").is_billable
    assert not Ending.crashed(ERROR).is_billable


def test_the_terminal_event_says_status_tokens_and_reason() -> None:
    ending = Ending.failed(ERROR, usage=USED, output=None, model_used="m")
    assert ending.event_data() == {
        "status": "failed",
        "usage": {"input_tokens": 3, "output_tokens": 4},
        "error": {"code": "agents.x", "detail": "Something."},
    }


def test_four_events_end_a_stream() -> None:
    assert {"run.succeeded", "run.failed", "run.cancelled", "run.timed_out"} == TERMINAL_EVENT_TYPES
    assert not RunEvent(seq=1, type="run.usage", data={}).is_terminal
