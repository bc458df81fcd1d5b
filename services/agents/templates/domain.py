"""What a template customisation is, where one can begin, and what can be wrong with it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from libs.common.errors import Conflict, NotFound

KEPT_VERSIONS: Final = 50
"""Of each template; older ones are forgotten when a new one is written."""


class TemplateNotFound(NotFound):
    code = "agents.template_not_found"


class TemplateVersionNotFound(NotFound):
    code = "agents.template_version_not_found"


class TemplateIdTaken(Conflict):
    code = "agents.template_id_taken"


class PresetNotFound(NotFound):
    code = "agents.template_preset_not_found"


class SharedTemplateNotFound(NotFound):
    """Also for a link that was withdrawn, and for one that never was: the two must look alike."""

    code = "agents.shared_template_not_found"

    def __init__(self) -> None:
        super().__init__("There is no template behind this link.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What a template says, whoever wrote it."""

    name: str
    agent_type: str
    instructions: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """`share_token` is what a link to it carries; None while it is not shared."""

    id: UUID
    name: str
    agent_type: str
    instructions: str
    version: int
    share_token: UUID | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    version: int
    name: str
    instructions: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A template that ships with the product; a customisation may begin as a copy of it."""

    key: str
    text: Text
    description: str


def preset(key: str) -> Preset:
    """Raises PresetNotFound."""
    for it in PRESETS:
        if it.key == key:
            return it
    raise PresetNotFound("There is no such preset.")


PRESETS: Final = (
    Preset(
        key="weekly-plan",
        description="Monday's plan for a small team",
        text=Text(
            name="Weekly plan",
            agent_type="suggestion",
            instructions=(
                "Plan one working week. Name the single outcome the week is for, and the number that shows it.\n"
                "List at most five pieces of work in order. Each has an owner's role, a day, and what is true when it "
                "is done.\nSay what is deliberately left for later, and the first sign on Wednesday that the plan is "
                "wrong."
            ),
        ),
    ),
    Preset(
        key="landing-page",
        description="Words for a page that asks for one thing",
        text=Text(
            name="Landing page",
            agent_type="generator",
            instructions=(
                "Write the text of a landing page: a headline of at most nine words that names the reader's problem, "
                "one sentence of what the product does about it, three benefits with a fact each, the most likely "
                "objection with its answer, and one call to action.\nUse no superlatives. Mark every fact that the "
                "reader has to supply with [brackets] instead of inventing it."
            ),
        ),
    ),
    Preset(
        key="investor-update",
        description="A month's letter to investors",
        text=Text(
            name="Investor update",
            agent_type="generator",
            instructions=(
                "Write a monthly update to investors of at most 300 words: three numbers with last month beside them, "
                "what went well, what went badly and what was learned, cash and months of runway, the next month's "
                "one goal, and one precise request.\nPut bad news before good news. Leave [brackets] where a number is "
                "missing; never make one up."
            ),
        ),
    ),
    Preset(
        key="customer-interview",
        description="Questions that find out what people do, not what they say",
        text=Text(
            name="Customer interview",
            agent_type="generator",
            instructions=(
                "Write a guide for an interview of thirty minutes. Ask about the last time the problem happened, what "
                "it cost, and what was tried; never about the future or about our idea.\nGive seven open questions "
                "with one follow-up each, then three signs that the problem is real and three that it is not."
            ),
        ),
    ),
    Preset(
        key="pricing-check",
        description="Whether the price holds",
        text=Text(
            name="Pricing check",
            agent_type="suggestion",
            instructions=(
                "Judge the pricing described in the task. Compare it with what the customer pays for the problem "
                "today, work one month of one typical customer through in figures marked as assumptions, and say "
                "which of packaging, metric and level to change first.\nEnd with one test of at most two weeks and "
                "the result at which to keep the new price."
            ),
        ),
    ),
    Preset(
        key="pull-request",
        description="What a founder should know about a change",
        text=Text(
            name="Pull request review",
            agent_type="suggestion",
            instructions=(
                "Say in two sentences what the change does for users. Then list what could break, the most harmful "
                "first, each with how one would notice and how to go back.\nName what is missing from the tests. "
                "Finish with one of: merge, merge after the first point, or talk first."
            ),
        ),
    ),
    Preset(
        key="launch-orchestration",
        description="A launch broken into work for other agents",
        text=Text(
            name="Launch plan for agents",
            agent_type="orchestrator",
            instructions=(
                "Break the launch into steps that other agents can do from their description alone. Look at past runs "
                "first and repeat none of them. Put steps that produce words to publish under 'generator' and steps "
                "that need a decision under 'suggestion'. Ask as questions what only the founders can know."
            ),
        ),
    ),
)
