"""A graph of one node that answers as an offline model does: at once, with a sentence or two."""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict):
    task: str
    output: str


async def answer(state: State) -> dict[str, str]:
    return {"output": f"About {state['task']}: talk to ten customers this week, write down what they say."}


builder = StateGraph(State)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)
graph = builder.compile()
