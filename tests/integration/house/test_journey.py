"""Whole journeys through the gateway, all services in one process on real servers."""

import asyncio
from typing import Any
from uuid import uuid4

import orjson
import pytest

from tests.harness.house import House, Person
from tests.harness.patience import eventually


async def read_stream(
    person: Person, path: str, *, after: int | None = None, stop_at: int | None = None
) -> list[tuple[int, str, Any]]:
    """Read a run's stream to its end, or up to and with event number `stop_at`, then hang up."""
    events: list[tuple[int, str, Any]] = []
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    async with person.client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        fields: dict[str, str] = {}
        async for line in response.aiter_lines():
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                events.append((int(fields["id"]), fields["event"], orjson.loads(fields["data"])))
                fields = {}
                if events[-1][0] == stop_at:
                    break
    return events


async def test_a_run_is_accepted_streamed_settled_and_counted(house: House) -> None:
    async with house.person() as ada:
        accepted = await ada.client.post("/v1/runs", json={"task": "Plan a launch"})
        assert accepted.status_code == 202, accepted.text
        links = accepted.json()["links"]
        events = await read_stream(ada, links["events"])
        assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
        names = [name for _, name, _ in events]
        assert (names[0], names[1], names[-1]) == ("run.queued", "run.started", "run.succeeded")
        run = (await ada.client.get(links["self"])).json()
        assert run["status"] == "succeeded"
        assert run["model_used"] == "offline"
        assert run["output"] == "".join(data["text"] for _, name, data in events if name == "run.delta")

        async def settled() -> dict[str, Any]:
            metrics: dict[str, Any] = (await ada.client.get("/v1/usage")).json()["metrics"]
            return metrics if metrics["runs"]["used"] == 1 and not metrics["tokens"]["held"] else {}

        metrics = await eventually(settled)
        assert metrics["tokens"]["used"] == run["usage"]["input_tokens"] + run["usage"]["output_tokens"]


async def test_a_stream_cut_anywhere_resumes_without_gap_or_duplicate(house: House) -> None:
    async with house.person() as ada:
        links = (await ada.client.post("/v1/runs", json={"task": "Plan a launch"})).json()["links"]
        whole = await read_stream(ada, links["events"])
        for cut in range(1, len(whole)):
            first = await read_stream(ada, links["events"], stop_at=cut)
            rest = await read_stream(ada, links["events"], after=cut)
            assert first + rest == whole


async def test_the_same_idempotency_key_gives_the_same_bytes_and_one_run(house: House) -> None:
    async with house.person() as ada:
        headers = {"Idempotency-Key": str(uuid4())}
        body = {"task": "Only once"}
        answers = await asyncio.gather(*(ada.client.post("/v1/runs", json=body, headers=headers) for _ in range(20)))
        assert {answer.status_code for answer in answers} <= {202, 409}
        again = await ada.client.post("/v1/runs", json=body, headers=headers)
        assert again.status_code == 202
        assert {answer.content for answer in answers if answer.status_code == 202} == {again.content}
        other = await ada.client.post("/v1/runs", json={"task": "Something else"}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "gateway.idempotency_key_reused")

        async def one_run() -> bool:
            return len((await ada.client.get("/v1/runs")).json()["items"]) == 1

        await eventually(one_run)
        assert await house.place.database.fetchval("SELECT count(*) FROM metering.holds") == 1


@pytest.mark.parametrize("key", ["", "a key", "k" * 256])
async def test_what_is_no_idempotency_key_is_refused_and_not_taken_for_none(house: House, key: str) -> None:
    async with house.person() as ada:
        answer = await ada.client.post("/v1/runs", json={"task": "Only once"}, headers={"Idempotency-Key": key})
        assert answer.status_code == 422, answer.text
        assert (await ada.client.get("/v1/runs")).json()["items"] == []


async def test_a_crowd_of_several_people_gets_a_run_for_each_request(house: House) -> None:
    """They share statements, calls and commits; each answer is the asker's own."""
    async with house.person() as ada, house.person() as bob:
        asks = [
            person.client.post("/v1/runs", json={"task": f"Plan {number}"}, headers={"Idempotency-Key": str(uuid4())})
            for number in range(15)
            for person in (ada, bob)
        ]
        answers = await asyncio.gather(*asks)
        assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
        assert len({answer.json()["id"] for answer in answers}) == 30
        rows = await house.place.database.fetch("SELECT id::text, subject, data ->> 'task' AS task FROM gateway.outbox")
        told = {row["id"]: (row["subject"], row["task"]) for row in rows if row["task"]}
        wanted = [(person.id, f"Plan {number}") for number in range(15) for person in (ada, bob)]
        assert [told[answer.json()["id"]] for answer in answers] == wanted


async def test_nobody_sees_anothers_run(house: House) -> None:
    async with house.person() as ada, house.person() as eve:
        links = (
            await ada.client.post("/v1/runs", json={"task": "A secret plan"}, headers={"Prefer": "wait=20"})
        ).json()
        path = f"/v1/runs/{links['id']}"
        strange = f"/v1/runs/{uuid4()}"
        for method, suffix in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
            hers = await eve.client.request(method, path + suffix)
            nobodys = await eve.client.request(method, strange + suffix)
            assert hers.status_code == nobodys.status_code == 404
            assert {**hers.json(), "trace_id": ""} == {**nobodys.json(), "trace_id": ""}


async def test_the_free_limit_refuses_with_its_reason(house: House) -> None:
    async with house.person() as ada:
        await ada.client.get("/v1/usage")
        await house.place.database.execute(
            """
            INSERT INTO usage_metrics (user_id, metric_type, metric_value, held_value, period_start, period_end)
            VALUES ($1, 'runs', 50, 0, date_trunc('month', now()), date_trunc('month', now()) + interval '1 month')
            """,
            ada.id,
        )
        refused = await ada.client.post("/v1/runs", json={"task": "One too many"})
        assert refused.status_code == 429
        answer = refused.json()
        assert answer["code"] == "metering.quota_exceeded"
        assert (answer["metric"], answer["limit"], answer["used"], answer["held"]) == ("runs", 50, 50, 0)
        assert answer["upgrade_url"].endswith("/pricing")
        assert int(refused.headers["retry-after"]) > 0


async def test_an_operators_update_raises_the_limit_and_a_delete_gives_the_quota_back(house: House) -> None:
    async with house.person() as ada:

        async def limit() -> int | None:
            return (await ada.client.get("/v1/usage")).json()["metrics"]["runs"]["limit"]

        async def is_free() -> bool:
            return await limit() == 50

        await eventually(is_free)
        async with house.place.database.connect_as("venture_operator") as operator:
            await operator.execute(
                f"""
                UPDATE user_profiles
                SET subscription_status = 'active',
                    subscription_tier = 'pro',
                    stripe_customer_id = 'cus_xxxxx'
                WHERE user_id = '{ada.id}';
                """  # noqa: S608 - the runbook's statement, word for word
            )

            async def is_pro() -> bool:
                return await limit() == 1000

            await eventually(is_pro, within_s=5)
            await ada.client.post("/v1/runs", json={"task": "Use one"}, headers={"Prefer": "wait=20"})

            async def used_one() -> bool:
                return (await ada.client.get("/v1/usage")).json()["metrics"]["runs"]["used"] == 1

            await eventually(used_one)
            await operator.execute(f"DELETE FROM usage_metrics \nWHERE user_id = '{ada.id}';")  # noqa: S608
            assert (await ada.client.get("/v1/usage")).json()["metrics"]["runs"]["used"] == 0


async def test_a_deleted_user_is_erased_by_every_service(house: House) -> None:
    async with house.person() as ada:
        await ada.client.post("/v1/runs", json={"task": "Forget me"}, headers={"Prefer": "wait=20"})
        async with house.place.database.connect_as("venture_operator") as operator:
            await operator.execute(f"DELETE FROM auth.users WHERE id = '{ada.id}';")  # noqa: S608

        async def erased() -> bool:
            return bool(
                await house.place.database.fetchval(
                    "SELECT billing_at IS NOT NULL AND metering_at IS NOT NULL AND agents_at IS NOT NULL "
                    "FROM gateway.erasures WHERE user_id = $1::uuid",
                    ada.id,
                )
            )

        await eventually(erased)
        assert await house.place.database.fetchval("SELECT count(*) FROM agent_runs") == 0
        assert await house.place.database.fetchval("SELECT count(*) FROM user_profiles") == 0

        async def locked_out() -> bool:
            return (await ada.client.get("/v1/profile")).status_code == 401

        await eventually(locked_out, within_s=5)


async def test_the_users_own_stream_tells_of_runs_while_another_transaction_stands_open(house: House) -> None:
    operator = house.place.database.connect_as("venture_operator")
    async with house.person() as ada, operator as bystander, ada.client.stream("GET", "/v1/events") as response:
        lines = response.aiter_lines()
        await anext(lines)
        async with bystander.transaction():
            await bystander.execute("SELECT pg_current_xact_id()")
            await ada.client.post("/v1/runs", json={"task": "Tell me"})
            seen: set[str] = set()
            async with asyncio.timeout(30):
                async for line in lines:
                    if line.startswith("event: "):
                        seen.add(line.removeprefix("event: "))
                    if seen >= {"run.started", "run.finished", "usage.settled"}:
                        break


async def test_billing_without_stripe_says_so_and_the_rest_works(house: House) -> None:
    async with house.person() as ada:
        refused = await ada.client.post("/v1/billing/checkout", json={"tier": "pro"})
        assert (refused.status_code, refused.json()["code"]) == (503, "billing.disabled")
        assert (await ada.client.get("/v1/profile")).status_code == 200
        ready = await house.billing.client.get("/health/ready")
        assert "disabled" in {check["status"] for check in ready.json()["checks"]}


async def test_maintenance_closes_the_house_to_users_and_not_to_admins_or_webhooks(house: House) -> None:
    async with house.person() as ada, house.person() as admin:
        async with house.place.database.connect_as("venture_operator") as operator:
            await operator.execute(
                f"""
                UPDATE user_profiles
                SET premium_features = jsonb_set(
                  premium_features,
                  '{{admin}}',
                  'true'
                )
                WHERE user_id = '{admin.id}';
                """  # noqa: S608 - the runbook's statement, word for word
            )
        assert (await ada.client.put("/v1/admin/maintenance", json={})).status_code == 404
        on = await admin.client.put("/v1/admin/maintenance", json={"reason": "moving", "expires_in_s": 60})
        assert on.status_code == 200, on.text
        closed = await ada.client.get("/v1/profile")
        assert closed.status_code == 503
        assert closed.json() == {"error": "Service temporarily unavailable for maintenance", "retryAfter": 3600}
        assert closed.headers["retry-after"] == "3600"
        assert (await house.gateway.client.get("/health")).status_code == 200
        assert (await admin.client.get("/v1/profile")).status_code == 200
        await admin.client.request("DELETE", "/v1/admin/maintenance")
        assert (await ada.client.get("/v1/profile")).status_code == 200


async def test_a_passed_post_with_a_key_makes_one_thing_and_answers_with_the_same_bytes(house: House) -> None:
    body = {"name": "Weekly", "instructions": "Sum up the week."}
    async with house.person() as someone, house.person() as another:
        headers = {"Idempotency-Key": "template-1"}
        answers = await asyncio.gather(
            *(someone.client.post("/v1/templates", json=body, headers=headers) for _ in range(8))
        )
        made = [answer for answer in answers if answer.status_code != 409]
        assert {answer.json()["code"] for answer in answers if answer.status_code == 409} <= {
            "gateway.idempotency_key_in_flight"
        }
        again = await someone.client.post("/v1/templates", json=body, headers=headers)
        assert {answer.content for answer in made} == {again.content}
        assert len((await someone.client.get("/v1/templates")).json()["items"]) == 1
        other = await someone.client.post("/v1/templates", json={**body, "name": "Other"}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "gateway.idempotency_key_reused")
        assert (await another.client.post("/v1/templates", json=body, headers=headers)).content != again.content
