"""The orchestrator's contract with its model: which tools it may call, and the plan it has to answer with. Pure."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_TOOL_ROUNDS: Final = 4
MAX_PROBLEMS: Final = 5

Line = Annotated[str, Field(min_length=1, max_length=2_000)]


class PlanStep(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: Line
    detail: Line
    agent_type: Annotated[str, Field(pattern=r"^(suggestion|generator)$")] = "suggestion"


class Plan(BaseModel):
    """What an orchestrator answers."""

    model_config = ConfigDict(extra="forbid")

    summary: Line
    steps: Annotated[list[PlanStep], Field(min_length=1, max_length=12)]
    risks: Annotated[list[Line], Field(max_length=12)] = []
    questions: Annotated[list[Line], Field(max_length=12)] = []


class PlanInvalid(Exception):
    """The answer is no plan; `problems` says what is wrong with it, without quoting it."""

    def __init__(self, problems: str) -> None:
        super().__init__(problems)
        self.problems = problems


def read_plan(text: str) -> str:
    """The plan in its one form. Fences and words around the outermost braces are forgiven. Raises PlanInvalid."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise PlanInvalid("there is no JSON object in the answer")
    try:
        return Plan.model_validate_json(text[start : end + 1]).model_dump_json(indent=2)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)[:MAX_PROBLEMS]
        problems = "; ".join(f"{'.'.join(map(str, it['loc'])) or 'answer'}: {it['msg']}" for it in found)
        raise PlanInvalid(problems) from error


def repair_request(problems: str) -> str:
    return f"That is not the JSON asked for ({problems}). Answer again with the corrected JSON object and nothing else."


TOOLS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "list_past_runs": (
        "The user's latest runs: task, agent type, status and the beginning of the output.",
        {
            "type": "object",
            "properties": {"limit": {"type": "integer", "minimum": 1, "maximum": 10}},
            "additionalProperties": False,
        },
    ),
    "list_templates": (
        "The user's own templates: name, agent type and instructions.",
        {"type": "object", "properties": {}, "additionalProperties": False},
    ),
    "get_usage": (
        "How many runs and tokens the user's agents have used this month.",
        {"type": "object", "properties": {}, "additionalProperties": False},
    ),
}
"""Each tool's description and the JSON schema of its arguments. All of them read, none writes."""
