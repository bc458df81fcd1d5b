"""The offline model answers usefully, the same way each time, and within its limit."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.agents.offline_model import compose, cut_to_tokens, topics_of
from services.agents.prompts.domain import Ingredients, Vibe, assemble, count_tokens

TASK = "Plan the launch of our invoice reminder for small agencies. Invoice reminders are late today."


def answer(task: str = TASK, *, agent_type: str = "suggestion", **parts: Any) -> str:
    return compose(assemble([], Ingredients(task=task, agent_type=agent_type, **parts)))


def test_the_answer_has_its_four_sections_and_says_who_wrote_it() -> None:
    text = answer()
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections == ["## Summary", "## Steps", "## Risks", "## Checklist"]
    assert "offline model" in text
    assert text.startswith("# Plan the launch of our invoice reminder for small agencies\n")


def test_the_same_prompt_gives_the_same_answer() -> None:
    assert answer() == answer()


@pytest.mark.parametrize("agent_type", ["suggestion", "plan", "review", "research", "something-new"])
def test_every_agent_type_has_steps_that_name_the_topic(agent_type: str) -> None:
    text = answer(agent_type=agent_type)
    assert "invoice" in text.partition("## Steps")[2]
    assert "{" not in text


def test_the_profile_and_the_sliders_show_in_the_answer() -> None:
    profile: Mapping[str, Any] = {"stack": ["python", "htmx"], "kpi_focus": "invoices paid in time"}
    text = answer(profile=profile, vibe=Vibe(investor_perspective=90))
    assert "python, htmx" in text
    assert "invoices paid in time" in text
    assert "investor" in text


def test_braces_in_a_task_stay_literal() -> None:
    assert "{topic} {0} ${7*7}" in answer("{topic} {0} ${7*7}")


def test_topics_are_phrases_and_frequent_words_come_first() -> None:
    assert topics_of(TASK) == ["invoice reminder", "invoice reminders", "small agencies"]
    assert topics_of("") == topics_of("a an 12 !") == []


@given(text=st.text(), limit=st.integers(min_value=0, max_value=50))
def test_a_cut_answer_stays_within_its_tokens(text: str, limit: int) -> None:
    cut = cut_to_tokens(text, limit)
    assert count_tokens(cut) <= limit
    assert text.startswith(cut)
