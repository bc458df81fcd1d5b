"""The model that needs no key and no network: it composes an answer from the prompt's parts by rule.

It stands in honestly: `model_used` is "offline", the answer says how it was made, the same prompt gives the same
answer, it costs nothing, and its tokens are counted by `count_tokens` over the assembled prompt and the answer.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Final

from services.agents.ports import ModelOutput, Round, TextDelta, ToolSpec, UsageReport
from services.agents.prompts.domain import BYTES_PER_TOKEN, Ingredients, Prompt, count_tokens
from services.agents.runs.domain import Usage

PIECE_CHARS: Final = 400
"""Each piece wakes its run, and the longer all of them take together, the more rows of deltas are written meanwhile."""
PIECE_PAUSE_MS: Final = 4
_TITLE_CHARS: Final = 140
_HIGH: Final = 67
_MIN_WORD: Final = 4
_MAX_PHRASE: Final = 3
_STOPWORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """
    about after again also because been before being between both could does doing down during each from
    further have having here into itself just more most need needs once only other ours over same should
    some such than that their theirs them then there these they this those through under until very want
    wants were what when where which while whom will with would your yours make please help give write
    create suggest
        """,
    )
)

Step = tuple[str, str]

# (what to do, how to know that it is done); {topic}, {kpi} and {stack} are filled in.
_STEPS: Final[Mapping[str, Sequence[Step]]] = {
    "suggestion": (
        (
            "Write down in one sentence who has the problem behind {topic} and what they do today instead.",
            "somebody outside the team understands the sentence",
        ),
        ("Talk to three such people this week; ask for the last time it happened.", "three dated notes"),
        ("Make the smallest version of {topic} that one of them can use{stack}.", "one person has used it unaided"),
        ("Decide beforehand which value of {kpi} means go on, and which means stop.", "both numbers are written down"),
        ("Look at the numbers after seven days and choose one next step.", "the next step has an owner and a date"),
    ),
    "plan": (
        ("Set the outcome for {topic}: one measure ({kpi}), one value, one date.", "it fits in one line"),
        ("List what must be true for that, and mark what nobody has checked.", "each open point has an owner"),
        ("Do the riskiest open point first, in the cheapest way{stack}.", "its result is known"),
        ("Cut the rest into pieces of at most two days, each of use by itself.", "the first piece has started"),
        (
            "Meet weekly for fifteen minutes over {kpi} alone; change the plan, not the date.",
            "the first meeting was held",
        ),
    ),
    "review": (
        ("Restate what {topic} is meant to achieve; if that takes two sentences, split it.", "one sentence is left"),
        ("Check the edges first: empty, twice, at the same time, half done{stack}.", "each edge has an answer"),
        ("Ask what a newcomer would misread, and rename that.", "a newcomer has read it"),
        ("Take out what nobody uses yet.", "it is smaller than before"),
        ("Say how a failure would show in {kpi}, and how to go back.", "the way back has been tried once"),
    ),
    "research": (
        ("Turn {topic} into one question that can be answered with yes, no or a number.", "the question is written"),
        ("Collect what is known, each with its source and date.", "nothing in the list is from hearsay"),
        ("Name the three facts whose absence hurts most.", "each has a way to be found"),
        ("Find the cheapest observation that would change your mind{stack}.", "it is booked"),
        ("Write the conclusion first, then try to refute it against {kpi}.", "the best objection is in the text"),
    ),
}


class OfflineModel:
    @property
    def name(self) -> str:
        return "offline"

    async def stream(
        self,
        prompt: Prompt,
        *,
        max_output_tokens: int,
        tools: Sequence[ToolSpec] = (),  # noqa: ARG002 - it calls none
        rounds: Sequence[Round] = (),  # noqa: ARG002 - its first answer is its best
    ) -> AsyncGenerator[ModelOutput, None]:
        is_plan = prompt.ingredients.agent_type == "orchestrator"
        text = cut_to_tokens(compose_plan(prompt) if is_plan else compose(prompt), max_output_tokens)
        for start in range(0, len(text), PIECE_CHARS):
            yield TextDelta(text=text[start : start + PIECE_CHARS])
            await _next_beat()
        yield UsageReport(usage=Usage(input_tokens=prompt.input_tokens, output_tokens=count_tokens(text)))


async def _next_beat() -> None:
    """Pause until the next multiple of four milliseconds, the same for all answers of a process.

    Answers that are composed side by side so end in one moment, and their ends are written in one statement.
    """
    now_ms = round(asyncio.get_running_loop().time() * 1000)
    await asyncio.sleep((PIECE_PAUSE_MS - now_ms % PIECE_PAUSE_MS) / 1000)


def compose_plan(prompt: Prompt) -> str:
    """The structured answer of an orchestrator."""
    steps = [
        {"title": action[:_TITLE_CHARS], "detail": f"Done when {done}.", "agent_type": "suggestion"}
        for action, done in _steps(prompt.ingredients, topics_of(prompt.ingredients.task))
    ]
    summary = f"{_title(prompt.ingredients.task)} (composed offline, without a language model)"
    plan = {
        "summary": summary,
        "steps": steps,
        "risks": [line.lstrip("- ") for line in _risks(prompt)],
        "questions": [],
    }
    return json.dumps(plan, ensure_ascii=False)


def compose(prompt: Prompt) -> str:
    """The whole answer: summary, steps, risks, checklist."""
    ingredients = prompt.ingredients
    topics = topics_of(ingredients.task)
    steps = _steps(ingredients, topics)
    return "\n".join(
        [
            f"# {_title(ingredients.task)}",
            "",
            "*Composed by the offline model from your task, profile and sliders. No language model was asked.*",
            "",
            "## Summary",
            "",
            *_summary(prompt, topics),
            "",
            "## Steps",
            "",
            *(f"{n}. {action}" for n, (action, _) in enumerate(steps, start=1)),
            "",
            "## Risks",
            "",
            *_risks(prompt),
            "",
            "## Checklist",
            "",
            *(f"- [ ] Step {n}: {done}" for n, (_, done) in enumerate(steps, start=1)),
            "",
        ]
    )


def cut_to_tokens(text: str, max_tokens: int) -> str:
    """The longest beginning of `text` within the limit that does not split a character."""
    return text.encode()[: max_tokens * BYTES_PER_TOKEN].decode(errors="ignore")


def topics_of(task: str, *, limit: int = 3) -> list[str]:
    """What a task is about: phrases of up to three words that carry meaning, those of frequent words first."""
    phrases: list[list[str]] = [[]]
    for word in re.findall(r"[^\W\d_][\w\-]*|\S", task.lower()):
        if len(word) < _MIN_WORD or word in _STOPWORDS or len(phrases[-1]) == _MAX_PHRASE:
            phrases.append([])
        if len(word) >= _MIN_WORD and word not in _STOPWORDS:
            phrases[-1].append(word)
    counts = Counter(word for phrase in phrases for word in phrase)
    ranked = sorted(filter(None, phrases), key=lambda phrase: -sum(counts[word] for word in phrase))
    return list(dict.fromkeys(" ".join(phrase) for phrase in ranked))[:limit]


def _title(task: str) -> str:
    first = re.split(r"(?<=[.!?])\s|\n", task.strip(), maxsplit=1)[0].strip().rstrip(".")
    return first if len(first) <= _TITLE_CHARS else f"{first[: _TITLE_CHARS - 1].rstrip()}…"


def _steps(ingredients: Ingredients, topics: Sequence[str]) -> list[Step]:
    profile = ingredients.profile
    stack = profile.get("stack")
    names = ", ".join(map(str, stack)) if isinstance(stack, list | tuple) else str(stack or "")  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    words = {
        "topic": next(iter(topics), "this"),
        "kpi": str(profile.get("kpi_focus") or _default_kpi(ingredients)),
        "stack": f", with what you have ({names})" if names else "",
    }
    templates = _STEPS.get(ingredients.agent_type, _STEPS["suggestion"])
    # Replaced one by one: a task may contain braces, which str.format would take for its own.
    return [(_fill(action, words), _fill(done, words)) for action, done in templates]


def _fill(template: str, words: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: words[match[1]], template)


def _default_kpi(ingredients: Ingredients) -> str:
    return "paid revenue" if ingredients.vibe.revenue_focus >= _HIGH else "weekly returning users"


def _summary(prompt: Prompt, topics: Sequence[str]) -> list[str]:
    ingredients = prompt.ingredients
    company = str(ingredients.profile.get("company_context") or "").strip()
    lines = [f"The task turns on **{', '.join(topics) or 'the task as stated'}**."]
    if company:
        lines.append(f"For {company.rstrip('.')}, the first useful result should be visible within a week.")
    lines += [f"{atom.body}" for atom in prompt.atoms if atom.category in {"perspective", "phase"}]
    if ingredients.vibe.playfulness >= _HIGH:
        lines.append("Think of it as a paper plane: fold, throw, see where it lands, fold again.")
    if ingredients.template_instructions:
        lines.append(f"Your template asks: {' '.join(ingredients.template_instructions.split())[:300]}")
    return lines


def _risks(prompt: Prompt) -> list[str]:
    chosen = [atom for atom in prompt.atoms if atom.category in {"risk", "constraint", "goal", "domain"}]
    lines = [f"- **{atom.title}.** {atom.body}" for atom in chosen]
    if prompt.ingredients.vibe.investor_perspective >= _HIGH:
        lines.append("- **The next round.** An investor will ask what would make this ten times larger; answer it now.")
    return lines
