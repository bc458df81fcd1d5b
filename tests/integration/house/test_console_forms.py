"""Acts of the console through their own forms, each sent twice as by an impatient finger: one effect, written down."""

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pydantic_ai.models
import pytest
from llmock.pytest_plugin import LLMock

from libs.common.ids import new_id
from tests.harness.forms import form_on, press, send
from tests.harness.house import House, Person, open_house
from tests.harness.patience import eventually
from tests.harness.services import Place
from tests.integration.house.test_admin_acts import QUEUE, park
from tests.integration.house.test_streams_of_runs import be_rich


@pytest.fixture
async def house(place: Place, llmock: LLMock) -> AsyncGenerator[House, None]:
    """Its model takes half a minute for an answer: there is time to cancel."""
    llmock.reply(" ".join(f"word{n}" for n in range(300)), times=None).pace(100)
    models = {
        "openai_api_key": "sk-of-nobody-0123456789",
        "openai_base_url": llmock.base_url("openai"),
        "agents_models": "openai:gpt-4o-mini",
    }
    with pydantic_ai.models.override_allow_model_requests(True):  # noqa: FBT003 - their signature
        async with open_house(place, agents_overrides=models) as house:
            yield house


async def audited(house: House, action: str, subject: str) -> list[dict[str, Any]]:
    """What the log says of it, and that it was the operator."""
    rows = await house.place.database.fetch(
        """
        SELECT l.before, l.after, u.email FROM gateway.audit_log AS l JOIN auth.users AS u ON u.id::text = l.actor
        WHERE l.action = $1 AND l.subject = $2 ORDER BY l.at, l.id
        """,
        action,
        subject,
    )
    assert {row["email"] for row in rows} <= {"operator@example.com"}
    return rows


async def runs_left(person: Person) -> int:
    return (await person.client.get("/v1/usage")).json()["metrics"]["runs"]["remaining"]


async def test_a_grant_sent_twice_is_given_once(house: House, operator: httpx.AsyncClient) -> None:
    async with house.person() as person:
        at = f"/console/users/{person.id}"
        before = await runs_left(person)
        form = await form_on(operator, at, f"{at}/grant", field="grant_id")
        typed = {"amount": "7", "metric": "runs", "reason": "for your patience"}
        for _ in range(2):
            assert "Granted." in (await send(operator, f"{at}/grant", form, **typed)).text
        assert await runs_left(person) == before + 7
        other = await send(operator, f"{at}/grant", form, **{**typed, "amount": "8"})
        assert other.status_code == 409
        for amount in ("0", "-1", "1.5", "many", ""):
            assert (await press(operator, at, f"{at}/grant", **{**typed, "amount": amount})).status_code == 422
        assert await runs_left(person) == before + 7
        assert (await operator.get(at)).text.count("7 runs, 0 used") == 1
        lines = await audited(house, "usage_granted", person.id)
        assert {line["after"]["grant_id"] for line in lines} == {form["grant_id"]}
        assert [(line["after"]["amount"], line["after"]["reason"]) for line in lines] == [(7, "for your patience")] * 2


async def test_a_ban_sent_twice_shuts_somebody_out_until_it_is_lifted(
    house: House, operator: httpx.AsyncClient
) -> None:
    async with house.person() as person:
        at = f"/console/users/{person.id}"

        async def signs_in() -> int:
            body = {"email": person.email, "password": "correct horse battery"}
            path = "/auth/v1/token?grant_type=password"
            return (await house.gateway.client.post(path, json=body, headers=house.anon_headers())).status_code

        ban = await form_on(operator, at, f"{at}/change", field="banned")
        assert ban["banned"] == "true"
        for _ in range(2):
            assert "Changed." in (await send(operator, f"{at}/change", ban)).text

        async def is_shut_out() -> bool:
            return (await person.client.get("/v1/profile")).status_code in {401, 403}

        await eventually(is_shut_out, within_s=6)
        assert await signs_in() == 400
        assert "Lift the ban" in (await operator.get(at)).text
        lift = await form_on(operator, at, f"{at}/change", field="banned")
        assert lift["banned"] == "false"
        for _ in range(2):
            await send(operator, f"{at}/change", lift)
        assert await signs_in() == 200
        lines = await audited(house, "user_changed", person.id)
        assert [(line["before"]["banned"], line["after"]["banned"]) for line in lines] == [
            (False, True),
            (True, True),
            (True, False),
            (False, False),
        ]


async def test_a_run_cancelled_twice_ends_once_and_is_not_counted(house: House, operator: httpx.AsyncClient) -> None:
    async with house.person() as person:
        await be_rich(house, person)  # whose plan has a model of a provider
        asked = await person.client.post("/v1/runs", json={"task": "Say many words", "max_output_tokens": 1_000})
        run_id = asked.json()["id"]
        at = f"/console/runs/{run_id}"

        async def is_writing() -> bool:
            return "word3 " in (await operator.get(at)).text

        await eventually(is_writing, within_s=20, every_s=0.1)
        form = await form_on(operator, at, f"{at}/cancel")
        for _ in range(2):
            assert "being cancelled" in (await send(operator, f"{at}/cancel", form)).text

        async def has_ended() -> bool:
            page = (await operator.get(at)).text
            return "badge cancelled" in page and f"{at}/cancel" not in page

        await eventually(has_ended, within_s=15, every_s=0.1)
        await send(operator, f"{at}/cancel", form)  # once more, of a page that was open all along

        async def is_given_back() -> bool:
            runs = (await person.client.get("/v1/usage")).json()["metrics"]["runs"]
            return (runs["used"], runs["held"]) == (0, 0)

        await eventually(is_given_back, within_s=10)
        told = await house.place.database.fetchval(
            "SELECT count(*) FROM agents.run_events WHERE run_id::text = $1 AND type = 'run.cancelled'", run_id
        )
        finished = await house.place.database.fetch(
            "SELECT data FROM agents.outbox WHERE type = 'agents.run_finished.v1' AND data ->> 'run_id' = $1", run_id
        )
        assert (told, [event["data"]["outcome"] for event in finished]) == (1, ["cancelled"])
        assert len(await audited(house, "run_cancelled", run_id)) == 3


async def test_a_message_given_up_twice_is_gone_once_and_kept_in_the_log(
    house: House, operator: httpx.AsyncClient
) -> None:
    at, (first, second) = f"/console/queues/{QUEUE}", (str(new_id()), str(new_id()))
    await park(house, first, second)

    async def both_are_shown() -> bool:
        page = (await operator.get(at)).text
        return first in page and second in page

    await eventually(both_are_shown, within_s=15, every_s=0.2)
    form = {**(await form_on(operator, at, f"{at}/discard", field="message_id")), "message_id": first}
    for discarded in (1, 0):
        assert f"Discarded: {discarded}." in (await send(operator, f"{at}/discard", form)).text
    page = (await operator.get(at)).text
    assert (first in page, second in page) == (False, True)
    lines = await audited(house, "parked_discarded", QUEUE)
    assert [(line["after"]["message_id"], line["after"]["body"]) for line in lines] == [(first, {"it is": "no event"})]


async def test_whatever_was_parked_is_shown(house: House, operator: httpx.AsyncClient) -> None:
    """What is no event at all is parked, too, and must not keep its queue from being looked at."""
    at = f"/console/queues/{QUEUE}"
    bodies = (b"no JSON", b"[1]", b'"text"', b'{"time": "yesterday"}', b'{"time": "2026-01-01"}', b'{"time": 5}', b"{}")
    for number, body in enumerate(bodies):
        await park(house, f"odd-{number}", body=body)

    async def all_are_shown() -> bool:
        page = await operator.get(at)
        assert page.status_code == 200
        return all(f"odd-{number}" in page.text for number in range(len(bodies)))

    await eventually(all_are_shown, within_s=15, every_s=0.2)
