"""HTTP in for prompts: sliders, atoms, and a preview of what a model would be given."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field

from libs.common.database import Database
from libs.common.http import CurrentCaller
from libs.common.inputs import Input
from services.agents.prompts import operations, queries
from services.agents.prompts.domain import Ingredients, Vibe, assemble, held_input_tokens
from services.agents.templates import queries as template_queries
from services.agents.templates.domain import Template, TemplateNotFound

Slider = Annotated[int, Field(ge=0, le=100, strict=True)]
AgentType = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]


class VibeInput(Input):
    """A whole configuration: a slider left out is set back to the middle."""

    playfulness: Slider = 50
    revenue_focus: Slider = 50
    investor_perspective: Slider = 50


class PreviewInput(Input):
    task: str = Field(min_length=1, max_length=50_000)
    agent_type: AgentType = "suggestion"
    vibe: dict[str, Slider] = Field(default_factory=dict)
    template_id: UUID | None = None
    context: dict[str, Any] = Field(default_factory=dict)
    profile: dict[str, Any] = Field(default_factory=dict)


class Routes:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal", tags=["prompts"])
        router.add_api_route("/vibe-config", self.get_vibe, methods=["GET"])
        router.add_api_route("/vibe-config", self.put_vibe, methods=["PUT"])
        router.add_api_route("/prompt-atoms", self.list_atoms, methods=["GET"])
        router.add_api_route("/prompts/preview", self.preview, methods=["POST"])
        return router

    async def get_vibe(self, caller: CurrentCaller) -> dict[str, int]:
        user_id = str(caller.require_user())
        async with self._database.transaction_as(caller.claims) as conn:
            return (await queries.find_vibe(conn, user_id) or Vibe()).as_dict()

    async def put_vibe(self, caller: CurrentCaller, body: VibeInput) -> dict[str, int]:
        user_id = caller.require_user()
        vibe = Vibe(**body.model_dump())
        async with self._database.transaction_as(caller.claims) as conn:
            await operations.set_vibe(conn, user_id, vibe)
        return vibe.as_dict()

    async def list_atoms(self, caller: CurrentCaller) -> dict[str, Any]:
        caller.require_user()
        async with self._database.transaction_as(caller.claims) as conn:
            atoms = await queries.list_atoms(conn)
        items = [
            {
                "key": atom.key,
                "category": atom.category,
                "title": atom.title,
                "body": atom.body,
                "tags": sorted(atom.tags),
                "is_default": atom.is_default,
            }
            for atom in atoms
        ]
        return {"items": items, "next_cursor": None}

    async def preview(self, caller: CurrentCaller, body: PreviewInput) -> dict[str, Any]:
        """What a run with this body would give its model. Nothing is stored and nothing is charged."""
        user_id = str(caller.require_user())
        async with self._database.transaction_as(caller.claims) as conn:
            template: Template | None = None
            if body.template_id is not None:
                template = await template_queries.find_template(conn, user_id, body.template_id)
                if template is None:
                    raise TemplateNotFound("There is no such template.")
            vibe = await queries.find_vibe(conn, user_id) or Vibe()
            atoms = await queries.list_atoms(conn)
        prompt = assemble(
            atoms,
            Ingredients(
                task=body.task,
                agent_type=body.agent_type,
                vibe=vibe.overridden_by(body.vibe),
                profile=body.profile,
                context=body.context,
                template_instructions=template.instructions if template else None,
            ),
        )
        return {
            "system": prompt.system,
            "user": prompt.user,
            "atoms": [atom.key for atom in prompt.atoms],
            "choices": [
                {
                    "key": it.atom.key,
                    "category": it.atom.category,
                    "version": it.atom.version,
                    "success_rate": round(it.atom.success_rate, 3),
                    "reason": it.reason,
                }
                for it in prompt.choices
            ],
            "cut": list(prompt.cut),
            "vibe": prompt.ingredients.vibe.as_dict(),
            "input_tokens": prompt.input_tokens,
            "input_tokens_held": held_input_tokens(body.task, body.context),
        }
