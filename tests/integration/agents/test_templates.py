"""Users' own templates: begun from presets or from each other's, with a history; and atoms as admins curate them."""

from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx
import pytest

from libs.common import service_tokens
from libs.common.ids import new_id
from tests.harness.services import SERVICE_TOKEN_SECRET, Place, RunningService, service_headers
from tests.integration.agents.workshop import FakeModel, agents, agents_database, get, has_status, request_run


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
async def service(place: Place, model: FakeModel) -> AsyncGenerator[RunningService, None]:
    async with agents(place, model) as running:
        yield running


async def call(
    service: RunningService, user_id: UUID, method: str, path: str, body: Any = None, **headers: str
) -> httpx.Response:
    identity = service_headers("agents", user_id=user_id)
    return await service.client.request(method, f"/internal{path}", json=body, headers={**identity, **headers})


async def create(service: RunningService, user_id: UUID, **body: Any) -> dict[str, Any]:
    answer = await call(service, user_id, "POST", "/templates", body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_template_keeps_what_it_said_before_and_may_say_it_again(
    service: RunningService, user_id: UUID
) -> None:
    template = await create(service, user_id, name="Memo", instructions="First.")
    path = f"/templates/{template['id']}"
    for text in ("Second.", "Second.", "Third."):
        assert (await call(service, user_id, "PUT", path, {"name": "Memo", "instructions": text})).status_code == 200
    restored = (await call(service, user_id, "POST", f"{path}/restore", {"version": 1})).json()
    assert (restored["version"], restored["instructions"]) == (4, "First.")
    history = (await get(service, user_id, f"/internal{path}/versions"))["items"]
    assert [(it["version"], it["instructions"]) for it in history] == [
        (4, "First."),
        (3, "Third."),
        (2, "Second."),
        (1, "First."),
    ]
    assert (await call(service, user_id, "POST", f"{path}/restore", {"version": 9})).status_code == 404
    stranger = new_id()
    assert (await call(service, stranger, "POST", f"{path}/restore", {"version": 1})).status_code == 404
    assert (await call(service, stranger, "GET", f"{path}/versions")).status_code == 404


async def test_every_preset_can_be_made_one_s_own(service: RunningService, user_id: UUID) -> None:
    presets = (await get(service, user_id, "/internal/templates/presets"))["items"]
    assert len(presets) >= 5
    for preset in presets:
        mine = await create(service, user_id, preset=preset["key"])
        assert (mine["name"], mine["instructions"]) == (preset["name"], preset["instructions"])
    renamed = await create(service, user_id, preset=presets[0]["key"], name="Ours")
    assert renamed["name"] == "Ours"
    missing = await call(service, user_id, "POST", "/templates", {"preset": "no-such"})
    assert (missing.status_code, missing.json()["code"]) == (404, "agents.template_preset_not_found")


@pytest.mark.parametrize("body", [{}, {"name": "n"}, {"instructions": "i"}, {"preset": "a", "instructions": "i"}])
async def test_a_template_has_one_source(service: RunningService, user_id: UUID, body: dict[str, str]) -> None:
    assert (await call(service, user_id, "POST", "/templates", body)).status_code == 422


async def test_a_link_shows_the_template_and_nothing_of_its_owner_until_it_is_withdrawn(
    service: RunningService, user_id: UUID
) -> None:
    template = await create(service, user_id, name="Memo", instructions="Write a memo.", agent_type="generator")
    path = f"/templates/{template['id']}/share"
    stranger = new_id()
    assert (await call(service, stranger, "POST", path)).status_code == 404
    share = (await call(service, user_id, "POST", path)).json()["share"]
    assert (await call(service, user_id, "POST", path)).json()["share"] == share
    shown = await get(service, stranger, f"/internal/shared-templates/{share['token']}")
    assert shown == {"name": "Memo", "agent_type": "generator", "instructions": "Write a memo."}
    copy = await create(service, stranger, shared=share["token"])
    assert (copy["name"], copy["agent_type"], copy["share"]) == ("Memo", "generator", None)
    assert copy["id"] != template["id"]
    assert (await call(service, user_id, "DELETE", path)).status_code == 204
    for token in (share["token"], new_id()):
        gone = await call(service, stranger, "GET", f"/shared-templates/{token}")
        assert (gone.status_code, gone.json()["code"]) == (404, "agents.shared_template_not_found")
    assert (await get(service, stranger, f"/internal/templates/{copy['id']}"))["instructions"] == "Write a memo."


async def test_the_same_key_makes_one_template_and_another_s_key_none(service: RunningService, user_id: UUID) -> None:
    key = {"Idempotency-Key": str(new_id())}
    body = {"name": "Memo", "instructions": "Write a memo."}
    first = await call(service, user_id, "POST", "/templates", body, **key)
    again = await call(service, user_id, "POST", "/templates", body, **key)
    assert first.json() == again.json()
    assert first.json()["id"] == key["Idempotency-Key"]
    assert (await call(service, new_id(), "POST", "/templates", body, **key)).status_code == 409


@pytest.fixture
def admin() -> UUID:
    return new_id()


async def curate(service: RunningService, admin: UUID, method: str, body: Any = None) -> httpx.Response:
    """As the gateway asks for somebody whom it has let through as an admin."""
    headers = service_headers("agents", user_id=admin, is_admin=True)
    return await service.client.request(method, "/internal/admin/prompt-atoms", json=body, headers=headers)


ATOM = {"key": "tone.pirate", "category": "tone", "title": "Pirate", "body": "Speak like a pirate.", "tags": ["ship"]}


async def test_an_admin_s_atom_is_used_and_a_new_version_begins_without_verdicts(
    place: Place, service: RunningService, model: FakeModel, user_id: UUID, admin: UUID
) -> None:
    saved = await curate(service, admin, "PUT", ATOM)
    assert (saved.status_code, saved.json()["version"], saved.json()["changed_by"]) == (200, 1, str(admin))
    async with agents_database(place.database) as database:
        run_id = await request_run(database, user_id, task="Name our ship.")
    row = await has_status(place.database, run_id, "succeeded")
    assert "Speak like a pirate." in model.prompts[-1].system
    assert "tone.pirate@1" in row["atoms"]
    verdict = {"verdict": "approved"}
    assert (await call(service, user_id, "POST", f"/runs/{run_id}/feedback", verdict)).status_code == 200
    same = (await curate(service, admin, "PUT", {**ATOM, "weight": 200})).json()
    assert (same["version"], same["approvals"]) == (1, 1)
    changed = (await curate(service, admin, "PUT", {**ATOM, "body": "Speak like a captain."})).json()
    assert (changed["version"], changed["approvals"]) == (2, 0)
    (kept,) = await place.database.fetch("SELECT version, body, approvals FROM agents.prompt_atom_versions")
    assert kept == {"version": 1, "body": "Speak like a pirate.", "approvals": 1}
    # A verdict on an answer of the former version says nothing of the present one.
    await call(service, user_id, "POST", f"/runs/{run_id}/feedback", {"verdict": "rejected"})
    listed = (await curate(service, admin, "GET")).json()["items"]
    assert next(it["rejections"] for it in listed if it["key"] == "tone.pirate") == 0


async def test_a_category_has_one_default_and_an_inactive_atom_is_not_used(
    service: RunningService, user_id: UUID, admin: UUID
) -> None:
    await curate(service, admin, "PUT", {**ATOM, "is_default": True})
    atoms = (await get(service, user_id, "/internal/prompt-atoms"))["items"]
    assert [it["key"] for it in atoms if it["category"] == "tone" and it["is_default"]] == ["tone.pirate"]
    await curate(service, admin, "PUT", {**ATOM, "is_active": False})
    assert "tone.pirate" not in str(await get(service, user_id, "/internal/prompt-atoms"))
    assert "tone.pirate" in (await curate(service, admin, "GET")).text


async def test_nobody_curates_atoms_whom_the_gateway_calls_no_admin(service: RunningService, user_id: UUID) -> None:
    claims = {"sub": str(user_id), "role": "authenticated", "is_admin": True}
    of_another = service_tokens.mint(SERVICE_TOKEN_SECRET, issuer="billing", audience="agents", user=claims)
    for method, body in (("GET", None), ("PUT", ATOM)):
        assert (await call(service, user_id, method, "/admin/prompt-atoms", body)).status_code == 403
        headers = {"Authorization": f"Bearer {of_another}"}
        assert (await call(service, user_id, method, "/admin/prompt-atoms", body, **headers)).status_code == 403
