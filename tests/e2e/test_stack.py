"""The stack as a newcomer and an operator meet it: brought up, walked through, killed and scaled."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping

import httpx

from ops.home import ROOT
from ops.stack.stack import Stack
from tests.conftest import STACK_SETTINGS
from tests.harness.patience import eventually

PROMISED = {
    "GATEWAY_URL",
    "BILLING_URL",
    "METERING_URL",
    "AGENTS_URL",
    "NEXT_PUBLIC_SUPABASE_URL",
    "NEXT_PUBLIC_SUPABASE_ANON_KEY",
    "SUPABASE_SERVICE_ROLE_KEY",
    "OPERATOR_DATABASE_URL",
    "AMQP_URL",
    "REDIS_URL",
    "STRIPE_API_BASE",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "MAIL_API_URL",
    "ADMIN_EMAIL",
    "ADMIN_PASSWORD",
    "GATEWAY_URLS",
}


def run_in(stack: Stack, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of our programs against this stack, as a person would by make."""
    return subprocess.run(
        (sys.executable, "-m", module, *arguments),
        cwd=ROOT,
        env={**os.environ, "VENTURE_HOME": str(stack.home.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_journey_holds_from_sign_up_to_erasure(stack: Stack) -> None:
    demo = run_in(stack, "ops.demo")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "Everything held" in demo.stdout


def test_env_prints_every_promised_name_and_nothing_else_than_assignments(stack: Stack) -> None:
    printed = run_in(stack, "ops.stack", "env")
    assert printed.returncode == 0, printed.stderr
    names = {line.removeprefix("export ").partition("=")[0] for line in printed.stdout.splitlines()}
    assert names >= PROMISED


async def test_every_service_is_ready_and_health_has_the_documented_shape(environment: Mapping[str, str]) -> None:
    async with httpx.AsyncClient(timeout=10) as client:
        for name in ("GATEWAY_URL", "BILLING_URL", "METERING_URL", "AGENTS_URL"):
            health = (await client.get(f"{environment[name]}/health")).json()
            assert sorted(health) == ["environment", "status", "timestamp", "version"]
            assert health["status"] == "ok"

            async def is_ready(url: str = environment[name]) -> bool:
                return (await client.get(f"{url}/health/ready")).status_code == 200

            await eventually(is_ready, within_s=20)


async def test_a_killed_service_is_back_within_seconds(stack: Stack, environment: Mapping[str, str]) -> None:
    before = stack.pid("agents")
    os.kill(before, signal.SIGKILL)

    async def is_another() -> bool:
        try:
            return stack.pid("agents") != before
        except Exception as error:
            if "not running" in str(error):
                return False
            raise

    await eventually(is_another, within_s=15)
    async with httpx.AsyncClient(timeout=5) as client:

        async def is_ready() -> bool:
            try:
                return (await client.get(f"{environment['AGENTS_URL']}/health/ready")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(is_ready, within_s=20)


def test_up_again_with_the_same_settings_changes_nothing(stack: Stack) -> None:
    pid = stack.pid("gateway")
    stack.up(settings=STACK_SETTINGS)
    assert stack.pid("gateway") == pid
