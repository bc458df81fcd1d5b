"""HTTP in for admins who curate prompt atoms."""

from typing import Annotated, Any

import structlog
from fastapi import APIRouter
from pydantic import Field

from libs.common.clock import iso_millis
from libs.common.database import Database
from libs.common.errors import Forbidden
from libs.common.http import Caller, CurrentCaller
from libs.common.inputs import Input
from services.agents.atoms import operations, queries
from services.agents.atoms.domain import MAX_WEIGHT, AtomText, Category, CuratedAtom

log = structlog.get_logger(__name__)

Word = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+\-]{0,39}$")]
Words = Annotated[frozenset[Word], Field(max_length=40)]
Key = Annotated[str, Field(pattern=r"^[a-z]+\.[a-z0-9_\-]{1,60}$")]


class AtomInput(Input):
    """A whole atom. What is left out is as if it had never been said."""

    key: Key
    category: Category
    title: Annotated[str, Field(min_length=1, max_length=80)]
    body: Annotated[str, Field(min_length=1, max_length=600)]
    tags: Words = frozenset()
    is_default: bool = False
    position: Annotated[int, Field(ge=0, le=10_000)] = 100
    weight: Annotated[int, Field(ge=1, le=MAX_WEIGHT)] = 100
    target_roles: Words = frozenset()
    verticals: Words = frozenset()
    incompatible_with: Annotated[frozenset[Key], Field(max_length=40)] = frozenset()
    is_active: bool = True


class Routes:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal/admin/prompt-atoms", tags=["atoms"])
        router.add_api_route("", self.list_atoms, methods=["GET"])
        router.add_api_route("", self.save_atom, methods=["PUT"])
        return router

    async def list_atoms(self, caller: CurrentCaller) -> dict[str, Any]:
        """All of them, also those out of use, with what users thought of them."""
        _require_admin(caller)
        async with self._database.transaction() as conn:
            atoms = await queries.list_curated(conn)
        return {"items": [_render(atom) for atom in atoms], "next_cursor": None}

    async def save_atom(self, caller: CurrentCaller, body: AtomInput) -> dict[str, Any]:
        """Make an atom or its next version. An atom is put out of use by `is_active`, never deleted: runs name it."""
        admin = _require_admin(caller)
        async with self._database.transaction() as conn:
            atom = await operations.save_atom(conn, AtomText(**body.model_dump()), changed_by=admin)
        log.info("prompt_atom_saved", key=body.key, version=atom.version, by=admin)
        return _render(atom)


def _require_admin(caller: Caller) -> str:
    """Who is an admin the gateway alone knows, which signs it: some are named in its settings. Raises Forbidden."""
    user_id = str(caller.require_user())
    if caller.service != "gateway" or caller.claims.get("is_admin") is not True:
        raise Forbidden("Only admins curate prompt atoms.")
    return user_id


def _render(atom: CuratedAtom) -> dict[str, Any]:
    text = atom.text
    return {
        "key": text.key,
        "category": text.category,
        "title": text.title,
        "body": text.body,
        "tags": sorted(text.tags),
        "is_default": text.is_default,
        "position": text.position,
        "weight": text.weight,
        "target_roles": sorted(text.target_roles),
        "verticals": sorted(text.verticals),
        "incompatible_with": sorted(text.incompatible_with),
        "is_active": text.is_active,
        "version": atom.version,
        "approvals": atom.approvals,
        "rejections": atom.rejections,
        "changed_at": iso_millis(atom.changed_at),
        "changed_by": atom.changed_by,
    }
