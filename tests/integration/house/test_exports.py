"""Everything the product holds about a user, handed out once it is counted; and quota that other things use."""

import csv
import io
import zipfile
from typing import Any

from tests.harness.house import House, Person
from tests.harness.patience import eventually

SECTIONS = {
    "account",
    "profile",
    "sessions",
    "factors",
    "api_keys",
    "events",
    "usage",
    "vibe_config",
    "subscription",
    "runs",
    "templates",
    "webhook_endpoints",
    "background_events",
    "invoices",
}


async def used(person: Person, metric: str) -> dict[str, Any]:
    usage = (await person.client.get("/v1/usage")).json()["metrics"][metric]
    return {"used": usage["used"], "held": usage["held"]}


async def used_becomes(person: Person, metric: str, count: int) -> None:
    async def is_counted() -> bool:
        return await used(person, metric) == {"used": count, "held": 0}

    await eventually(is_counted, within_s=10)


async def test_an_export_holds_all_of_ones_own_data_in_two_formats_and_is_counted(house: House) -> None:
    async with house.person() as ada, house.person() as bob:
        for person, task in ((ada, "=HYPERLINK(1)"), (bob, "Bob's own plan")):
            answer = await person.client.post("/v1/runs", json={"task": task}, headers={"Prefer": "wait=20"})
            assert answer.status_code == 200, answer.text
        made = await ada.client.post("/v1/api-keys", json={"name": "ci"})
        exported = await ada.client.get("/v1/export")
        assert exported.status_code == 200, exported.text
        assert "attachment" in exported.headers["content-disposition"]
        document = exported.json()
        assert document.keys() == SECTIONS
        assert document["account"]["email"] == ada.email
        assert [run["id"] for run in document["runs"]]
        assert document["subscription"] is None  # billing is switched off here
        for secret in (bob.email, "Bob's own plan", made.json()["key"], "argon2", "refresh_key", "encrypted"):
            assert secret not in exported.text
        packed = await ada.client.get("/v1/export?format=csv")
        assert packed.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
            assert {name.removesuffix(".csv") for name in archive.namelist()} == SECTIONS
            (run,) = csv.DictReader(io.StringIO(archive.read("runs.csv").decode()))
        assert run["task"] == "'=HYPERLINK(1)"  # no formula of a spreadsheet
        await used_becomes(ada, "exports", 2)
        refused = await ada.client.get("/v1/export")
        assert (refused.status_code, refused.json()["code"]) == (429, "metering.quota_exceeded")
        assert refused.json()["metric"] == "exports"
        await used_becomes(bob, "exports", 0)


async def test_templates_are_counted_when_they_were_made_and_only_then(house: House) -> None:
    async with house.person() as ada:
        refused = await ada.client.post("/v1/templates", json={"name": ""})
        assert refused.status_code == 422
        body = {"name": "Weekly", "instructions": "Plan the week."}
        made = await ada.client.post("/v1/templates", json=body, headers={"Idempotency-Key": "one"})
        again = await ada.client.post("/v1/templates", json=body, headers={"Idempotency-Key": "one"})
        assert (made.status_code, again.content) == (201, made.content), made.text
        await used_becomes(ada, "templates", 1)


async def test_an_export_without_one_of_the_services_is_refused_whole_and_costs_nothing(house: House) -> None:
    async with house.person() as ada:
        await house.place.database.execute("ALTER TABLE public.vibe_configs RENAME TO away")
        answer = await ada.client.get("/v1/export")
        assert (answer.status_code, answer.json()["code"]) == (503, "gateway.upstream_unavailable")
        await used_becomes(ada, "exports", 0)
