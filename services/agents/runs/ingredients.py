"""Reads what a run's prompt is made of and assembles it: atoms, template, lessons of earlier answers."""

from libs.common.database import Connection
from services.agents.prompts import queries as prompt_queries
from services.agents.prompts.domain import Ingredients, Prompt, Vibe, assemble
from services.agents.runs import feedback_queries
from services.agents.runs.domain import LeasedRun
from services.agents.templates import queries as template_queries
from services.agents.templates.domain import TemplateNotFound
from services.agents.users import queries as user_queries

FREE = "free"


async def read_prompt(conn: Connection, run: LeasedRun) -> tuple[Prompt, str]:
    """The prompt, within what the run's hold affords, and the user's tier. Raises TemplateNotFound."""
    instructions: str | None = None
    if run.template_id is not None:
        template = await template_queries.find_template(conn, run.user_id, run.template_id)
        if template is None:
            raise TemplateNotFound("The template of this run does not exist any more.")
        instructions = template.instructions
    ingredients = Ingredients(
        task=run.task,
        agent_type=run.agent_type,
        vibe=Vibe().overridden_by(run.vibe),
        profile=run.profile,
        context=run.context,
        template_instructions=instructions,
        lessons=await feedback_queries.list_lessons(conn, run.user_id, agent_type=run.agent_type),
    )
    tier = await user_queries.find_tier(conn, run.user_id) or FREE
    return assemble(await prompt_queries.list_atoms(conn), ingredients), tier
