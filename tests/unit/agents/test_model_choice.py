"""Which model answers, how long a provider is waited for, and when it is left alone."""

import pytest

from services.agents.models.domain import (
    BREAKER_REST_S,
    BREAKER_THRESHOLD,
    Breaker,
    ModelName,
    ModelNotAvailable,
    pause_s,
    route,
)

BOTH = frozenset({"openai", "anthropic"})
DEFAULTS = ("openai:gpt-4o-mini", "anthropic:claude-haiku-4-5")


def names(*args: str | None, allowed: tuple[str, ...] | None = None, configured: frozenset[str] = BOTH) -> list[str]:
    (requested,) = args
    return [str(it) for it in route(requested, allowed=allowed, defaults=DEFAULTS, configured=configured)]


def test_without_providers_the_offline_model_stands_in_for_everything() -> None:
    assert names("openai:gpt-4o", configured=frozenset()) == ["offline"]


def test_without_a_wish_the_list_is_tried_in_order_without_what_is_not_configured() -> None:
    assert names(None) == list(DEFAULTS)
    assert names(None, configured=frozenset({"anthropic"})) == [DEFAULTS[1]]


def test_what_is_asked_for_comes_first_and_the_list_follows() -> None:
    assert names("claude-sonnet-4-6") == ["anthropic:claude-sonnet-4-6", *DEFAULTS]


@pytest.mark.parametrize("wish", ["mistral:large", "openai:gpt-4o"])
def test_a_tier_is_held_to_its_list(wish: str) -> None:
    with pytest.raises(ModelNotAvailable):
        names(wish, allowed=("offline",))
    assert names(None, allowed=("offline",)) == ["offline"]


def test_a_name_without_a_provider_is_told_by_its_family() -> None:
    assert ModelName.parse("claude-x").provider == "anthropic"
    assert ModelName.parse("gpt-x").provider == "openai"


def test_pauses_double_up_to_a_bound_and_obey_the_provider() -> None:
    assert [pause_s(n, retry_after_s=None, chance=0.999) for n in (1, 2, 3)] == pytest.approx([0.5, 1, 2], rel=0.01)
    assert pause_s(20, retry_after_s=None, chance=0.5) <= 8
    assert 3 <= pause_s(1, retry_after_s=3, chance=0.5) <= 3.5


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_call_ask_after_its_rest() -> None:
    breaker = Breaker()
    for _ in range(BREAKER_THRESHOLD - 1):
        breaker.failed(now_s=0)
    assert breaker.allows(now_s=0)
    breaker.failed(now_s=0)
    assert not breaker.allows(now_s=BREAKER_REST_S - 1)
    assert breaker.allows(now_s=BREAKER_REST_S)
    assert not breaker.allows(now_s=BREAKER_REST_S)
    breaker.succeeded()
    assert breaker.allows(now_s=BREAKER_REST_S)


def test_a_provider_counts_as_failing_until_it_answers_however_seldom_it_is_asked() -> None:
    breaker = Breaker()
    for _ in range(BREAKER_THRESHOLD):
        assert not breaker.is_failing
        breaker.failed(now_s=0)
    assert breaker.is_failing
    assert breaker.allows(now_s=100 * BREAKER_REST_S)
    assert breaker.is_failing, "it is asked again, and has not answered yet"
    breaker.succeeded()
    assert not breaker.is_failing
