"""What a run's prompt is made of: what came with its lease, and the atoms, which all runs share."""

import asyncio
import time
from typing import Final

from libs.common.database import Database
from services.agents.prompts import queries as prompt_queries
from services.agents.prompts.domain import Atom, Ingredients, Prompt, Vibe, assemble
from services.agents.runs.domain import LeasedRun
from services.agents.templates.domain import TemplateNotFound

KEPT_S: Final = 5.0


class AtomShelf:
    """The atoms in use, read again after five seconds: so late may a curator's change be in a prompt."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._atoms: list[Atom] = []
        self._read_at = float("-inf")
        self._one_reads = asyncio.Lock()

    async def atoms(self) -> list[Atom]:
        if self._is_old():
            async with self._one_reads:
                if self._is_old():
                    async with self._database.statement() as conn:
                        self._atoms = await prompt_queries.list_atoms(conn)
                    self._read_at = time.monotonic()
        return self._atoms

    def _is_old(self) -> bool:
        return time.monotonic() - self._read_at > KEPT_S


def prompt_of(run: LeasedRun, atoms: list[Atom]) -> Prompt:
    """The prompt, within what the run's hold affords. Raises TemplateNotFound."""
    if run.template_id is not None and run.template_instructions is None:
        raise TemplateNotFound("The template of this run does not exist any more.")
    ingredients = Ingredients(
        task=run.task,
        agent_type=run.agent_type,
        vibe=Vibe().overridden_by(run.vibe),
        profile=run.profile,
        context=run.context,
        template_instructions=run.template_instructions,
        lessons=run.lessons,
    )
    return assemble(atoms, ingredients)
