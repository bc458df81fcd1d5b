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
        self._reading: asyncio.Task[None] | None = None

    async def atoms(self) -> list[Atom]:
        """One reads for all who come meanwhile: each for itself, they opened every connection of the pool at once."""
        if time.monotonic() - self._read_at > KEPT_S:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            await asyncio.shield(self._reading)
        return self._atoms

    async def _read(self) -> None:
        async with self._database.statement() as conn:
            self._atoms = await prompt_queries.list_atoms(conn)
        self._read_at = time.monotonic()


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
