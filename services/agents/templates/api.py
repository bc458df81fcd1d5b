"""HTTP in for template customisations. Reading runs as the user; a write names its caller in every statement."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header
from pydantic import Field, model_validator

from libs.common.clock import iso_millis
from libs.common.database import Database
from libs.common.http import CurrentCaller
from libs.common.ids import new_id
from libs.common.inputs import Input
from services.agents.paging import Cursor, Limit, decode_cursor, page
from services.agents.templates import operations, queries
from services.agents.templates.domain import PRESETS, Preset, Template, TemplateNotFound, Text, Version, preset

AgentType = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Name = Annotated[str, Field(min_length=1, max_length=120)]
Instructions = Annotated[str, Field(min_length=1, max_length=8_000)]


class TemplateInput(Input):
    """A text of one's own, or a copy: of a preset by its key, or of a shared template by its link's token."""

    name: Name | None = None
    instructions: Instructions | None = None
    agent_type: AgentType | None = None
    preset: Annotated[str, Field(max_length=80)] | None = None
    shared: UUID | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> "TemplateInput":
        if sum(it is not None for it in (self.preset, self.shared, self.instructions)) != 1:
            raise ValueError("give one of instructions, preset and shared")
        if self.instructions is not None and self.name is None:
            raise ValueError("give a name")
        return self


class TemplateChange(Input):
    name: Name
    instructions: Instructions


class RestoreInput(Input):
    version: Annotated[int, Field(ge=1, le=2**31 - 1)]


class Routes:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal", tags=["templates"])
        router.add_api_route("/templates", self.list_templates, methods=["GET"])
        router.add_api_route("/templates", self.create_template, methods=["POST"], status_code=201)
        router.add_api_route("/templates/presets", self.list_presets, methods=["GET"])
        router.add_api_route("/templates/{template_id}", self.get_template, methods=["GET"])
        router.add_api_route("/templates/{template_id}", self.change_template, methods=["PUT"])
        router.add_api_route("/templates/{template_id}", self.delete_template, methods=["DELETE"], status_code=204)
        router.add_api_route("/templates/{template_id}/versions", self.list_versions, methods=["GET"])
        router.add_api_route("/templates/{template_id}/restore", self.restore_version, methods=["POST"])
        router.add_api_route("/templates/{template_id}/share", self.share_template, methods=["POST"])
        router.add_api_route("/templates/{template_id}/share", self.unshare, methods=["DELETE"], status_code=204)
        router.add_api_route("/shared-templates/{token}", self.get_shared, methods=["GET"])
        return router

    async def list_templates(self, caller: CurrentCaller, cursor: Cursor = None, limit: Limit = 20) -> dict[str, Any]:
        user_id = str(caller.require_user())
        before = decode_cursor(cursor)
        async with self._database.transaction_as(caller.claims) as conn:
            templates = await queries.list_templates(conn, user_id=user_id, before=before, limit=limit + 1)
        return page(templates, limit=limit, render=_render)

    async def list_presets(self, caller: CurrentCaller) -> dict[str, Any]:
        caller.require_user()
        return {"items": [_render_preset(it) for it in PRESETS], "next_cursor": None}

    async def create_template(
        self, caller: CurrentCaller, body: TemplateInput, idempotency_key: Annotated[UUID | None, Header()] = None
    ) -> dict[str, Any]:
        """The key becomes the template's id, so that a repeated request makes one."""
        user_id = caller.require_user()
        async with self._database.transaction() as conn:
            if body.shared is not None:
                source = await operations.get_shared(conn, body.shared)
            elif body.preset is not None:
                source = preset(body.preset).text
            else:
                source = Text(name="", agent_type="suggestion", instructions=body.instructions or "")
            text = Text(
                name=body.name or source.name,
                agent_type=body.agent_type or source.agent_type,
                instructions=source.instructions,
            )
            template = await operations.create_template(
                conn, user_id=user_id, template_id=idempotency_key or new_id(), text=text
            )
        return _render(template)

    async def get_template(self, caller: CurrentCaller, template_id: UUID) -> dict[str, Any]:
        user_id = str(caller.require_user())
        async with self._database.transaction_as(caller.claims) as conn:
            template = await queries.find_template(conn, user_id, template_id)
        if template is None:
            raise TemplateNotFound(operations.NO_SUCH)
        return _render(template)

    async def change_template(self, caller: CurrentCaller, template_id: UUID, body: TemplateChange) -> dict[str, Any]:
        user_id = str(caller.require_user())
        async with self._database.transaction() as conn:
            template = await operations.change_template(
                conn, template_id, user_id=user_id, name=body.name, instructions=body.instructions
            )
        return _render(template)

    async def delete_template(self, caller: CurrentCaller, template_id: UUID) -> None:
        """Queued runs that name it end as failed and cost nothing but the run."""
        user_id = str(caller.require_user())
        async with self._database.transaction() as conn:
            await operations.delete_template(conn, template_id, user_id=user_id)

    async def list_versions(self, caller: CurrentCaller, template_id: UUID) -> dict[str, Any]:
        await self.get_template(caller, template_id)
        async with self._database.transaction_as(caller.claims) as conn:
            versions = await queries.list_versions(conn, template_id)
        return {"items": [_render_version(it) for it in versions], "next_cursor": None}

    async def restore_version(self, caller: CurrentCaller, template_id: UUID, body: RestoreInput) -> dict[str, Any]:
        user_id = str(caller.require_user())
        async with self._database.transaction() as conn:
            template = await operations.restore_version(conn, template_id, user_id=user_id, version=body.version)
        return _render(template)

    async def share_template(self, caller: CurrentCaller, template_id: UUID) -> dict[str, Any]:
        """Whoever is signed in and has the link may read the template and take a copy. Again: the same link."""
        user_id = str(caller.require_user())
        async with self._database.transaction() as conn:
            template = await operations.share_template(conn, template_id, user_id=user_id)
        return _render(template)

    async def unshare(self, caller: CurrentCaller, template_id: UUID) -> None:
        user_id = str(caller.require_user())
        async with self._database.transaction() as conn:
            await operations.unshare_template(conn, template_id, user_id=user_id)

    async def get_shared(self, caller: CurrentCaller, token: UUID) -> dict[str, Any]:
        caller.require_user()
        async with self._database.transaction() as conn:
            text = await operations.get_shared(conn, token)
        return _render_text(text)


def _render_text(text: Text) -> dict[str, Any]:
    return {"name": text.name, "agent_type": text.agent_type, "instructions": text.instructions}


def _render_preset(it: Preset) -> dict[str, Any]:
    return {"key": it.key, "description": it.description, **_render_text(it.text)}


def _render(template: Template) -> dict[str, Any]:
    return {
        "id": str(template.id),
        "name": template.name,
        "agent_type": template.agent_type,
        "instructions": template.instructions,
        "version": template.version,
        "share": _render_share(template.share_token),
        "created_at": iso_millis(template.created_at),
        "updated_at": iso_millis(template.updated_at),
    }


def _render_share(token: UUID | None) -> dict[str, str] | None:
    return {"token": str(token), "path": f"/v1/shared-templates/{token}"} if token else None


def _render_version(it: Version) -> dict[str, Any]:
    return {
        "version": it.version,
        "name": it.name,
        "instructions": it.instructions,
        "created_at": iso_millis(it.created_at),
    }
