"""The orchestrator's tools: reads of the user's own rows. What a model writes is a value here, never a statement."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from libs.common.database import Connection
from services.agents.runs import queries
from services.agents.runs.domain import RunFilter
from services.agents.templates import queries as template_queries

MAX_RESULT_CHARS: Final = 4_000
MAX_RUNS: Final = 10
_EXCERPT: Final = 200


async def use_tool(conn: Connection, name: str, arguments: Mapping[str, Any], *, user_id: str) -> str:
    """The tool's answer as JSON; an unknown tool answers that it is unknown, so that the model can go on."""
    match name:
        case "list_past_runs":
            found: Any = await _past_runs(conn, arguments.get("limit"), user_id=user_id)
        case "list_templates":
            templates = await template_queries.list_templates(conn, user_id=user_id, before=None, limit=MAX_RUNS)
            found = [
                {"name": it.name, "agent_type": it.agent_type, "instructions": it.instructions[:_EXCERPT]}
                for it in templates
            ]
        case "get_usage":
            found = await queries.usage_this_month(conn, user_id=user_id)
        case _:
            found = {"error": "there is no such tool"}
    return orjson.dumps(found).decode()[:MAX_RESULT_CHARS]


async def _past_runs(conn: Connection, limit: Any, *, user_id: str) -> list[dict[str, str]]:
    wanted = limit if isinstance(limit, int) else 5
    runs = await queries.list_runs(
        conn, user_id=user_id, wanted=RunFilter(), before=None, limit=min(MAX_RUNS, max(1, wanted))
    )
    return [
        {
            "task": run.task[:_EXCERPT],
            "agent_type": run.agent_type,
            "status": run.status.value,
            "output": (run.output or "")[:_EXCERPT],
        }
        for run in runs
    ]
