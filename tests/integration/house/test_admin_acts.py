"""Admins through a real gateway: what they do to usage, atoms and queues reaches the service, and is audited."""

from collections.abc import AsyncGenerator
from typing import Any

import aio_pika
import httpx
import pytest

from libs.common.broker import parked_queue
from libs.common.ids import new_id
from services.gateway.wiring import build
from tests.harness.house import House, Person, open_house
from tests.harness.patience import eventually
from tests.harness.services import Place, run_service
from tests.integration.house.test_fuzzing import become_admin

QUEUE = "metering.agents.run_finished.v1"


@pytest.fixture(scope="module")
async def house(lasting_place: Place) -> AsyncGenerator[House, None]:
    """One for all of them: each has people of its own."""
    async with open_house(lasting_place) as opened:
        yield opened


@pytest.fixture
async def admin(house: House) -> AsyncGenerator[Person, None]:
    async with house.person() as person:
        await become_admin(house, person)
        yield person


async def _audited(admin: Person, action: str) -> list[dict[str, Any]]:
    return (await admin.client.get("/v1/admin/audit", params={"action": action, "actor": admin.id})).json()["items"]


async def _runs_left(person: Person) -> int:
    return (await person.client.get("/v1/usage")).json()["metrics"]["runs"]["remaining"]


async def test_credits_are_given_seen_and_taken_back(house: House, admin: Person) -> None:
    async with house.person() as ada:
        before = await _runs_left(ada)
        path = f"/v1/admin/users/{ada.id}/grants"
        asked = {"grant_id": str(new_id()), "metric": "runs", "amount": 7, "reason": "for your patience"}
        given = await admin.client.post(path, json=asked)
        assert (given.status_code, given.json()["left"]) == (201, 7), given.text
        assert (await admin.client.post(path, json=asked)).json() == given.json()  # the same grant, not another
        assert await _runs_left(ada) == before + 7
        assert [grant["id"] for grant in (await admin.client.get(path)).json()["items"]] == [asked["grant_id"]]
        assert (await ada.client.post(path, json=asked)).status_code == 404
        voided = await admin.client.delete(f"/v1/admin/grants/{asked['grant_id']}")
        assert (voided.status_code, await _runs_left(ada)) == (204, before)
        act = (await _audited(admin, "usage_granted"))[-1]
        assert (act["actor"], act["subject"], act["after"]["asked"]) == (admin.id, ada.id, asked)
        assert [act["subject"] for act in await _audited(admin, "grant_voided")] == [asked["grant_id"]]
        by = await house.place.database.fetch("SELECT granted_by FROM metering.grants")
        assert [row["granted_by"] for row in by] == [admin.id]
        late = await admin.client.post(path, json={**asked, "grant_id": None, "expires_at": "2000-01-01T00:00:00Z"})
        assert late.status_code == 422
        unknown = await admin.client.post(path, json={**asked, "metric": "wishes"})
        assert (unknown.status_code, unknown.json()["code"]) == (422, "metering.unknown_metric")


async def test_metering_s_lists_and_repairs_are_reached_by_their_own_names(house: House, admin: Person) -> None:
    async with house.person() as ada:
        answer = await ada.client.post("/v1/runs", json={"task": "Plan."}, headers={"Prefer": "wait=20"})
        assert answer.status_code == 200, answer.text
        run_id = answer.json()["id"]

        async def is_booked() -> bool:
            ledger = await admin.client.get(f"/v1/admin/metering/users/{ada.id}/ledger", params={"metric": "runs"})
            return [entry["amount"] for entry in ledger.json()["items"]] == [1]

        await eventually(is_booked, within_s=10)
        top = (await admin.client.get("/v1/admin/metering/top-users?metric=runs")).json()["items"]
        assert ada.id in [row["user_id"] for row in top]
        refund = await admin.client.post(f"/v1/admin/metering/runs/{run_id}/refund", json={"reason": "it was ours"})
        assert (refund.status_code, refund.json()["changes"]["runs"]) == (200, -1), refund.text
        proof = await admin.client.post("/v1/admin/metering/rebuild", json={"verify": True})
        assert proof.json()["is_equal"] is True
        acts = [act["subject"] for act in await _audited(admin, "metering")]
        assert acts == ["POST rebuild", f"POST runs/{run_id}/refund"]
        for path in ("nowhere", "users/..%2F..%2Fusage", "%2e%2e/usage", "users//grants"):
            assert (await admin.client.get(f"/v1/admin/metering/{path}")).status_code == 404
        assert (await ada.client.get("/v1/admin/metering/top-users")).status_code == 404


async def test_usage_of_other_programs_comes_in_by_key_for_oneself_and_by_service_role_for_anybody(
    house: House,
) -> None:
    async with house.person() as ada, house.person() as bob:
        made = await ada.client.post("/v1/api-keys", json={"name": "meter", "scopes": ["usage"]})
        own = {"Authorization": f"Bearer {made.json()['key']}"}
        service = {"Authorization": f"Bearer {house.settings.supabase_service_role_key.get_secret_value()}"}
        post = house.gateway.client.post

        async def send(events: Any, headers: dict[str, str]) -> httpx.Response:
            kind = "cloudevents" if "specversion" in events else "cloudevents-batch"
            return await post(
                "/v1/usage/events", json=events, headers={**headers, "content-type": f"application/{kind}+json"}
            )

        one = _event("1", ada)
        assert (await send(one, own)).json() == {"accepted": 1, "duplicates": 0, "rejected": []}
        assert (await send(one, own)).json() == {"accepted": 0, "duplicates": 1, "rejected": []}
        batch = [_event("2", ada), _event("3", bob), {**_event("4", bob), "specversion": "9"}]
        foreign = (await send(batch, own)).json()
        assert (foreign["accepted"], [one["id"] for one in foreign["rejected"]]) == (1, ["3", "4"])
        for_all = (await send(batch, service)).json()
        assert [one["id"] for one in for_all["rejected"]] == ["4"]
        assert for_all["accepted"] == 2  # a reporter's names are its own: the key's event 2 is not the service's
        for person, used in ((ada, 3), (bob, 1)):
            runs = (await person.client.get("/v1/usage")).json()["metrics"]["runs"]
            assert runs["used"] == used * 2
        person_s = {"Authorization": ada.client.headers["Authorization"]}
        assert (await send(one, person_s)).json()["code"] == "metering.may_not_report"
        assert (await send(one, {})).status_code == 401
        assert (await post("/v1/usage/events", content=b"{", headers={**own})).status_code in {400, 415}


def _event(event_id: str, person: Person) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": "/workers/1",
        "type": "usage",
        "data": {"user_id": person.id, "metric": "runs", "value": 2},
    }


async def test_whoever_the_settings_name_curates_atoms_and_nobody_else(house: House) -> None:
    atom = {"key": "tone.pirate", "category": "tone", "title": "Pirate", "body": "Speak like a pirate."}
    async with house.person() as ada, house.person() as bob:
        settings = house.settings.model_copy(update={"admin_user_ids": (ada.id,)})
        async with run_service(build(settings)) as gateway:
            for person, status in ((ada, 200), (bob, 404)):
                headers = {"Authorization": person.client.headers["Authorization"]}
                saved = await gateway.client.put("/v1/admin/prompt-atoms", json=atom, headers=headers)
                assert saved.status_code == status, saved.text
                assert (await gateway.client.get("/v1/admin/prompt-atoms", headers=headers)).status_code == status
            headers = {"Authorization": ada.client.headers["Authorization"]}
            listed = (await gateway.client.get("/v1/admin/prompt-atoms", headers=headers)).json()["items"]
            assert {it["key"]: it["changed_by"] for it in listed}["tone.pirate"] == ada.id
        # Another gateway does not name her: there she is nobody.
        assert (await ada.client.get("/v1/admin/prompt-atoms")).status_code == 404


async def test_what_is_parked_is_seen_sent_again_and_given_up(house: House, admin: Person) -> None:
    path = f"/v1/admin/queues/{QUEUE}"
    listed = (await admin.client.get("/v1/admin/queues")).json()
    assert listed["silent"] == []
    assert {item["queue"].partition(".")[0] for item in listed["items"]} == {"gateway", "billing", "metering", "agents"}
    await park(house, "first", "second")

    async def parked() -> list[str]:
        return sorted(item["message_id"] for item in (await admin.client.get(f"{path}/parked")).json()["items"])

    assert await parked() == ["first", "second"]
    gone = await admin.client.post(f"{path}/discard", json={"message_id": "first"})
    again = await admin.client.post(f"{path}/discard", json={"message_id": "first"})
    assert (gone.json(), again.json(), await parked()) == ({"messages": 1}, {"messages": 0}, ["second"])
    assert (await admin.client.post(f"{path}/discard", json={})).status_code == 422  # never all at once
    sent = await admin.client.post(f"{path}/replay", json={"message_id": "second"})
    assert sent.json() == {"messages": 1}

    async def has_failed_again() -> bool:  # it is no event of ours, so it ends where it was
        return await parked() == ["second"]

    await eventually(has_failed_again, within_s=15)
    acts = await _audited(admin, "parked_discarded")
    assert [(act["subject"], act["after"]["message_id"]) for act in acts] == [(QUEUE, "first")]
    assert [act["after"] for act in await _audited(admin, "parked_replayed")] == [{"message_id": "second"}]
    for unknown in ("metering.nothing.v1", "gateway.nothing.v1", "nobody.agents.run_finished.v1"):
        assert (await admin.client.get(f"/v1/admin/queues/{unknown}/parked")).status_code == 404
    async with house.person() as ada:
        for method, what in (("GET", "parked"), ("POST", "replay"), ("POST", "discard")):
            assert (await ada.client.request(method, f"{path}/{what}", json={})).status_code == 404


async def park(house: House, *message_ids: str, body: bytes = b'{"it is": "no event"}') -> None:
    connection = await aio_pika.connect(house.place.amqp_url("operator"))
    async with connection, connection.channel() as channel:
        for message_id in message_ids:
            message = aio_pika.Message(body, message_id=message_id)
            await channel.default_exchange.publish(message, routing_key=parked_queue(QUEUE))
