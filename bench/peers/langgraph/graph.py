"""A graph of one node that answers as an offline model does: at once, with a text as long as that of ours."""

from typing import Final, TypedDict

from langgraph.graph import END, START, StateGraph

ANSWER_CHARS: Final = 1_500
_ADVICE: Final = " Talk to ten customers this week, write down what they say, and change one thing. " * 20
"""Composed once; ours is composed anew for each run."""


class State(TypedDict):
    task: str
    output: str


async def answer(state: State) -> dict[str, str]:
    return {"output": f"About {state['task']}:{_ADVICE}"[:ANSWER_CHARS]}


builder = StateGraph(State)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)
graph = builder.compile()
