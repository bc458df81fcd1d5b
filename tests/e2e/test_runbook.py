"""The runbook, executed: each of its blocks on a live stack, and each statement of SQL with the effect it promises."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import psycopg
import pytest

from ops.stack.stack import Stack
from tests.harness.live import Person, find, park_one, run_to_its_end, signed_up, stripe_event, used
from tests.harness.operator import Operator
from tests.harness.patience import eventually
from tests.harness.runbook import Block, read_blocks, statements

WITHIN_S = 5
SQL = [one for block in read_blocks() if block.language == "sql" for one in statements(block.text)]


@pytest.fixture
async def person(environment: Mapping[str, str]) -> AsyncGenerator[Person, None]:
    async with signed_up(environment) as one:
        yield one


@pytest.fixture
def operator(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(stack, capsys)


async def test_every_block_of_the_runbook_runs(
    operator: Operator, person: Person, environment: Mapping[str, str], tmp_path: Path
) -> None:
    given = {
        "USER_ID": person.id,
        "EMAIL": person.email,
        "RUN_ID": await run_to_its_end(person),
        "EVENT_ID": await stripe_event(environment),
        "REPORT": str(tmp_path / "launch.md"),
        "BACKUP": str(tmp_path / "backup"),
    }
    blocks = [block for block in read_blocks() if block.language == "sh" and not block.not_run]
    failed: list[str] = []
    for block in blocks:
        if "$MESSAGE_ID" in block.text and "MESSAGE_ID" not in given:
            given["MESSAGE_ID"] = await park_one(environment)
        failed += filter(None, [await asyncio.to_thread(trial, operator, block, given)])
    assert not failed, "\n\n".join(failed)

    async def is_open_again() -> bool:
        """The blocks closed the house and opened it; a replica looks once a second, and the next test signs up."""
        return (await person.client.get("/v1/usage")).status_code == 200

    await eventually(is_open_again, within_s=WITHIN_S)
    assert "verification: ready" in (tmp_path / "launch.md").read_text()
    assert operator.venture("doctor", "--wait", "20").code == 0


def trial(operator: Operator, block: Block, given: Mapping[str, str]) -> str:
    """What went wrong with a block; empty if nothing did."""
    out = ""
    lines = block.text.replace("\\\n", " ").splitlines()
    for number, line in enumerate(lines, start=1):
        answer = operator.type(line, given)
        out += answer.out
        if answer.code != (block.exits if number == len(lines) else 0):
            return f"line {block.line}: {line}\nexit {answer.code}\n{answer.out}{answer.err}"
    return "" if block.prints in out else f"line {block.line}: {block.prints!r} is not in\n{out}"


# The statements, word for word, each with the effect it promises. ----------------------------------------------------


def execute(environment: Mapping[str, str], fragment: str, user_id: str = "") -> int:
    """Run the runbook's statement that contains `fragment`, with a real id, as `venture_operator`; how many rows."""
    chosen = [one for one in SQL if fragment in one]
    assert len(chosen) == 1, chosen
    statement = chosen[0].replace("user-uuid-here", user_id)
    with psycopg.connect(environment["OPERATOR_DATABASE_URL"]) as conn:
        return conn.execute(statement.encode()).rowcount


async def test_a_manual_update_of_the_plan_reaches_limits_and_caches(
    person: Person, environment: Mapping[str, str]
) -> None:
    assert (await person.client.get("/v1/usage")).json()["metrics"]["runs"]["limit"] == 50
    assert execute(environment, "subscription_tier = 'pro',", person.id) == 1

    async def follows() -> bool:
        usage = (await person.client.get("/v1/usage")).json()
        profile = (await person.client.get("/v1/profile")).json()
        return (usage["tier"], usage["metrics"]["runs"]["limit"], profile["subscription_tier"]) == ("pro", 1000, "pro")

    await eventually(follows, within_s=WITHIN_S)
    assert execute(environment, "subscription_status != 'active'") >= 0


async def test_deleting_usage_gives_the_quota_back_and_keeps_the_books_equal(
    person: Person, environment: Mapping[str, str]
) -> None:
    for fragment in ("DELETE FROM usage_metrics \nWHERE user_id", "DELETE FROM usage_metrics um"):
        await run_to_its_end(person)

        async def one_is_used() -> bool:
            return await used(person) == 1

        await eventually(one_is_used, within_s=15)
        assert execute(environment, "ORDER BY metric_value DESC") >= 1
        assert execute(environment, fragment, person.id) >= 1

        async def none_is_used() -> bool:
            return await used(person) == 0

        await eventually(none_is_used, within_s=WITHIN_S)
    assert find(environment, "SELECT count(*) FROM metering.drift WHERE user_id = %s", person.id) == 0


async def test_a_new_admin_reaches_admin_routes_and_a_user_does_not(
    person: Person, environment: Mapping[str, str]
) -> None:
    assert (await person.client.get("/v1/admin/users")).status_code in {403, 404}
    assert execute(environment, "premium_features = jsonb_set(", person.id) == 1

    async def is_admin() -> bool:
        return (await person.client.get("/v1/admin/users")).status_code == 200

    await eventually(is_admin, within_s=WITHIN_S)


async def test_policies_are_listed_and_orphans_are_found(person: Person, environment: Mapping[str, str]) -> None:
    assert execute(environment, "FROM pg_policies") > 20
    assert execute(environment, "FROM agent_runs ar") >= 0
    assert execute(environment, "FROM background_events be") >= 0


async def test_deleting_a_user_erases_them_everywhere(person: Person, environment: Mapping[str, str]) -> None:
    run_id = await run_to_its_end(person)
    assert execute(environment, "DELETE FROM auth.users", person.id) == 1

    async def is_erased() -> bool:
        runs = find(environment, "SELECT count(*) FROM agent_runs WHERE id = %s", run_id)
        usage = find(environment, "SELECT count(*) FROM usage_metrics WHERE user_id = %s", person.id)
        return runs == usage == 0 and (await person.client.get("/v1/profile")).status_code in {401, 404}

    await eventually(is_erased, within_s=WITHIN_S)
