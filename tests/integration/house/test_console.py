"""What an operator does in the console, through the whole house: each act has its effect, and its line in the log."""

from collections.abc import Mapping

import httpx

from tests.harness.forms import press
from tests.harness.house import House, Person
from tests.harness.patience import eventually


async def a_run(person: Person) -> Mapping[str, str]:
    answer = await person.client.post("/v1/runs", json={"task": "Name a price"}, headers={"Prefer": "wait=20"})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def used_runs(person: Person) -> int:
    return (await person.client.get("/v1/usage")).json()["metrics"]["runs"]["used"]


async def test_a_user_is_found_helped_and_deleted(house: House, operator: httpx.AsyncClient) -> None:
    async with house.person() as person:
        run = await a_run(person)

        async def is_settled() -> bool:
            return await used_runs(person) == 1

        await eventually(is_settled)
        found = await operator.get("/console/users", params={"search": person.email[:8]})
        assert f'href="/console/users/{person.id}"' in found.text

        at = f"/console/users/{person.id}"
        page = (await operator.get(at)).text
        assert all(words in page for words in ("1 of 50", "Name a price", "free, inactive"))
        assert "Changed." in (await press(operator, at, f"{at}/change", tier="pro", reason="a gift")).text

        async def is_pro() -> bool:
            return (await person.client.get("/v1/usage")).json()["tier"] == "pro"

        await eventually(is_pro)
        await press(operator, at, f"{at}/reset")
        assert await used_runs(person) == 0

        detail = (await operator.get(f"/console/runs/{run['id']}")).text
        assert all(words in detail for words in ("succeeded", "Name a price", "characters in", person.email))

        slip = await press(operator, at, f"{at}/delete", confirm="somebody@else.example")
        assert slip.status_code == 422
        gone = await press(operator, at, f"{at}/delete", confirm=person.email)
        assert "Deleted account" in gone.text

        async def is_erased() -> bool:
            return (await operator.get(at)).text.count("badge erased") >= 2  # billing is off in this house

        await eventually(is_erased, within_s=15)
        log = (await operator.get("/console/audit", params={"subject": person.id})).text
        for action in ("user changed", "usage reset", "user deleted"):
            assert f"<strong>{action}</strong>" in log


async def test_every_page_shows_the_house_as_it_is(house: House, operator: httpx.AsyncClient) -> None:
    overview = (await operator.get("/console")).text
    assert all(f"<caption>{name}</caption>" in overview for name in ("gateway", "billing", "metering", "agents"))
    queues = (await operator.get("/console/queues")).text
    for queue in (
        "gateway.agents.run_finished.v1",
        "metering.agents.run_finished.v1",
        "agents.gateway.run_requested.v1",
    ):
        assert f'href="/console/queues/{queue}"' in queues
    assert "Nothing is parked here." in (await operator.get("/console/queues/agents.gateway.run_requested.v1")).text
    assert (await operator.get("/console/queues/agents.nothing.v1")).status_code == 404
    assert "Billing is switched off" in (await operator.get("/console/stripe")).text
