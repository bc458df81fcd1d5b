"""A database that comes back from a backup: what was under way is handled after all, and the gap is told."""

import asyncio
from pathlib import Path

import psycopg
import pytest

from ops.stack.stack import Stack
from tests.faults.hands import frozen, superuser
from tests.harness.live import signed_up
from tests.harness.operator import Operator
from tests.harness.patience import eventually


@pytest.fixture
def operator(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(stack, capsys)


async def test_a_backup_comes_back_and_heals_what_was_under_way(
    stack: Stack, operator: Operator, tmp_path: Path
) -> None:
    """The drill: what was under way at the moment of the dump is handled after the restore; the gap is told."""
    environment = stack.environment()
    async with signed_up(environment) as before, signed_up(environment) as after:
        with frozen(stack, "metering"):  # its consumers hold back what the dump then has only in outboxes
            accepted = await asyncio.to_thread(operator.ok, "subscription", "set", before.id, "--tier", "pro", "--yes")
            assert accepted["tier"] == "pro"

            async def is_sent() -> bool:
                with psycopg.connect(environment["OPERATOR_DATABASE_URL"]) as conn:
                    row = conn.execute(
                        "SELECT count(*) FROM gateway.outbox WHERE subject = %s AND sent_at IS NULL", (before.id,)
                    ).fetchone()
                return row is not None and row[0] == 0

            await eventually(is_sent, within_s=15)
            await asyncio.to_thread(operator.ok, "backup", str(tmp_path / "backup"))
        await asyncio.to_thread(operator.ok, "subscription", "set", after.id, "--tier", "pro", "--yes")
        pids = {name: stack.pid(name) for name in ("gateway", "billing", "metering", "agents")}
        report = await asyncio.to_thread(operator.ok, "restore", str(tmp_path / "backup"), "--yes")
        assert report["sent_again"].get("metering.gateway.entitlements_changed.v1", 0) >= 1

        async def is_healed() -> bool:
            response = await before.client.get("/v1/usage")
            return response.status_code == 200 and response.json()["metrics"]["runs"]["limit"] == 1000

        await eventually(is_healed, within_s=60, every_s=0.5)
        shown = await asyncio.to_thread(operator.ok, "users", "show", after.id)
        assert shown["tier"] == "free", "what was only ours and came after the backup is the gap"
        assert (await asyncio.to_thread(operator.venture, "doctor", "--wait", "60")).code == 0
        assert {name: stack.pid(name) for name in pids} == pids, "services reconnect, they are not restarted"
    superuser(stack, f"DROP DATABASE {report['before']}")
