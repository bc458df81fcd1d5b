"""Each secret is rotated for good on a running stack: who is accepted when, and that nothing is lost meanwhile."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import httpx
import jwt
import psycopg
import pytest
from psycopg.rows import dict_row

from devkit.stripe.deliveries import signature
from libs.common import service_tokens
from libs.common.clock import system_clock
from libs.common.ids import new_id
from ops.stack import dotenv, keys
from ops.stack.stack import Stack
from tests.conftest import STACK_SETTINGS
from tests.faults.clients import Record, people, while_working
from tests.faults.oracle import violations
from tests.harness.live import Person, signed_up, stripe_event
from tests.harness.operator import Operator
from tests.harness.patience import eventually

SETTINGS: Final = {**STACK_SETTINGS, "RATE_LIMIT_MAX_REQUESTS": "1000000"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack, None, None]:
    """A stack of its own: others keep keys that end here."""
    stack = Stack(tmp_path_factory.mktemp("rotation") / "home")
    try:
        stack.up(settings=SETTINGS)
        yield stack
    finally:
        stack.wipe()


@pytest.fixture
def rotation(own: Stack, capsys: pytest.CaptureFixture[str]) -> Generator["Rotation", None, None]:
    rotation = Rotation(own, Operator(own, capsys))
    yield rotation
    if rotation.scale:  # somebody who works at a second gateway would ask it for ever once it is gone
        own.up(settings=SETTINGS)


class Rotation:
    def __init__(self, stack: Stack, operator: Operator) -> None:
        self.stack = stack
        self.operator = operator
        self.scale = ""

    async def apply(self, *command: str) -> None:
        """`venture rotate ...`, then `make up`; what is written down of it is which settings changed, and no value."""
        await asyncio.to_thread(self.operator.ok, "rotate", *command, "--yes")
        await asyncio.to_thread(self.stack.up, settings=SETTINGS, scale=self.scale)
        row = self.fetch("SELECT subject, after::text FROM gateway.audit_log ORDER BY at DESC, id DESC LIMIT 1")[0]
        changed: list[str] = json.loads(row["after"])["settings"]
        assert row["subject"] == command[0]
        assert not [name for name in changed if self.settings[name] in row["after"]]

    async def under_load(self, *command: str) -> Record:
        """The same while people work: nobody gets a wrong answer, and what was accepted is done and counted once."""
        record = Record()
        async with people(self.environment, 3) as clients:
            await while_working(clients, record, lambda: self.apply(*command))
        print(f"rotate {' '.join(command)}: {record.statuses}, {record.unreachable} times nobody was there")
        assert record.wrong == []
        assert set(record.statuses) <= {"200", "202", "503"}
        assert len(record.accepted) == record.attempted
        await self.nothing_is_lost(record)
        return record

    async def nothing_is_lost(self, record: Record) -> None:
        async def fetch(statement: LiteralString) -> list[dict[str, Any]]:
            return self.fetch(statement)

        async def is_settled() -> bool:
            return not await violations(fetch)

        await eventually(is_settled, within_s=60, every_s=0.5)
        ended = self.fetch("SELECT id::text FROM agent_runs WHERE status = 'succeeded'")
        assert {row["id"] for row in ended} >= record.accepted

    @property
    def environment(self) -> Mapping[str, str]:
        return self.stack.environment()

    @property
    def settings(self) -> Mapping[str, str]:
        return dotenv.parse(self.stack.home.dotenv.read_text())

    def fetch(self, statement: LiteralString) -> list[dict[str, Any]]:
        url = self.stack.operator_environment()["SUPERUSER_DATABASE_URL"]
        with psycopg.Connection[dict[str, Any]].connect(url, row_factory=dict_row) as conn:
            return conn.execute(statement).fetchall()

    @contextlib.asynccontextmanager
    async def gateway(self, key: str) -> AsyncGenerator[httpx.AsyncClient, None]:
        """The gateway with an API key."""
        headers = {"apikey": self.environment[key]}
        async with httpx.AsyncClient(base_url=self.environment["GATEWAY_URL"], headers=headers, timeout=20) as client:
            yield client


def key_of(token: str) -> str:
    return jwt.get_unverified_header(token)["kid"]


async def test_tokens_of_the_former_signing_key_are_good_until_the_second_step(rotation: Rotation) -> None:
    async with signed_up(rotation.environment) as person, rotation.gateway("NEXT_PUBLIC_SUPABASE_ANON_KEY") as client:
        old = person.client.headers["Authorization"].removeprefix("Bearer ")
        password = {"email": person.email, "password": "correct horse battery"}

        async def signed_in() -> dict[str, Any]:
            answer = await client.post("/auth/v1/token?grant_type=password", json=password)
            assert answer.status_code == 200, answer.text
            return answer.json()

        async def status_of(token: str) -> int:
            return (await client.get("/v1/profile", headers={"Authorization": f"Bearer {token}"})).status_code

        before = await signed_in()
        await rotation.under_load("jwt")  # whose people hold tokens of the old key all along
        new = (await signed_in())["access_token"]
        assert key_of(new) != key_of(old)
        published = (await client.get("/auth/v1/.well-known/jwks.json")).json()["keys"]
        assert [one["kid"] for one in published] == [key_of(new), key_of(old)]
        assert [await status_of(old), await status_of(new)] == [200, 200]
        again = {"refresh_token": before["refresh_token"]}
        refreshed = (await client.post("/auth/v1/token?grant_type=refresh_token", json=again)).json()
        assert key_of(refreshed["access_token"]) == key_of(new)

        await rotation.apply("jwt", "--finish")
        assert [await status_of(old), await status_of(new)] == [401, 200]
        refused = await asyncio.to_thread(rotation.operator.venture, "rotate", "jwt", "--finish", "--yes")
        assert "no old key" in refused.err


@dataclass(slots=True)
class Wanderer:
    """Signs in at any gateway, and shows each the token of every other: what one has signed all of them must take."""

    environment: Mapping[str, str]
    seen: Counter[int] = field(default_factory=Counter[int])

    async def wander(self, *, until: asyncio.Event) -> None:
        over = asyncio.ensure_future(until.wait())
        gateways = self.environment["GATEWAY_URLS"].split(",")
        async with signed_up(self.environment) as person:
            while not over.done():
                tokens = [await self._token(person, gateway) for gateway in gateways]
                for token in filter(None, tokens):
                    for gateway in gateways:
                        await self._show(person, gateway, token)
                await asyncio.wait({over}, timeout=0.1)

    async def _token(self, person: Person, gateway: str) -> str | None:
        """None while that gateway is being restarted."""
        password = {"email": person.email, "password": "correct horse battery"}
        with contextlib.suppress(httpx.TransportError):
            answer = await person.client.post(f"{gateway}/auth/v1/token?grant_type=password", json=password)
            return answer.json()["access_token"] if answer.status_code == 200 else None
        return None

    async def _show(self, person: Person, gateway: str, token: str) -> None:
        with contextlib.suppress(httpx.TransportError):
            headers = {"Authorization": f"Bearer {token}"}
            self.seen[(await person.client.get(f"{gateway}/v1/profile", headers=headers)).status_code] += 1


async def test_a_signing_key_comes_to_one_gateway_after_the_other_and_each_takes_what_the_others_sign(
    rotation: Rotation,
) -> None:
    rotation.scale = "gateway=2"
    await asyncio.to_thread(rotation.stack.up, settings=SETTINGS, scale=rotation.scale)
    old = json.loads(rotation.settings["AUTH_SIGNING_KEYS"])[0]["kid"]
    wanderer, over = Wanderer(rotation.environment), asyncio.Event()
    async with asyncio.TaskGroup() as group, signed_up(rotation.environment) as person:
        group.create_task(wanderer.wander(until=over))
        await rotation.apply("jwt", "--publish")
        await rotation.under_load("jwt", "--sign")
        over.set()
        print(f"tokens of each gateway shown to all, answered {dict(wanderer.seen)}")
        assert set(wanderer.seen) <= {200, 503}
        assert wanderer.seen[200] >= 20
        assert key_of(person.client.headers["Authorization"].removeprefix("Bearer ")) == old
        assert (await person.client.get("/v1/profile")).status_code == 200, "signed in before, and still is"
        async with signed_up(rotation.environment) as another:
            assert key_of(another.client.headers["Authorization"].removeprefix("Bearer ")) != old
    await rotation.apply("jwt", "--finish")


async def test_services_take_one_another_s_word_by_the_new_secret_alone(rotation: Rotation) -> None:
    old = rotation.settings["SERVICE_TOKEN_SECRET"]
    await rotation.under_load("service")
    new = rotation.settings["SERVICE_TOKEN_SECRET"]
    for service in ("billing", "metering", "agents"):
        async with httpx.AsyncClient(base_url=rotation.environment[f"{service.upper()}_URL"]) as client:
            for secret, status in ((old, 401), (new, 200)):
                token = service_tokens.mint(secret, issuer="ops", audience=service)
                answer = await client.get("/internal/admin/queues", headers={"Authorization": f"Bearer {token}"})
                assert answer.status_code == status, f"{service}: {answer.text}"


async def test_webhooks_of_the_former_secret_are_good_until_the_second_step(rotation: Rotation) -> None:
    old, new = rotation.settings["STRIPE_WEBHOOK_SECRET"], keys.webhook_secret()
    url = f"{rotation.environment['BILLING_URL']}/webhooks/stripe"

    async def status_of(secret: str) -> int:
        now = int(system_clock().timestamp())
        facts = {"id": f"evt_{new_id().hex}", "type": "ping", "livemode": False, "created": now}
        body = json.dumps({**facts, "object": "event", "data": {"object": {"id": "x", "object": "ping"}}}).encode()
        async with httpx.AsyncClient() as client:
            signed = {"Stripe-Signature": signature(secret, body, now)}
            return (await client.post(url, content=body, headers=signed)).status_code

    assert [await status_of(old), await status_of(new)] == [200, 400]
    record = Record()
    happened: list[str] = []

    async def rotated_while_things_happen() -> None:
        async with asyncio.TaskGroup() as group:
            over = asyncio.Event()
            group.create_task(_customers(rotation.environment, happened, until=over))
            await rotation.apply("webhook", "--new", new)
            over.set()

    async with people(rotation.environment, 1) as clients:
        await while_working(clients, record, rotated_while_things_happen)
    assert record.wrong == []
    assert [await status_of(old), await status_of(new)] == [200, 200]
    await stripe_event(rotation.environment)  # Stripe, which signs with both now

    async def all_are_stored() -> bool:
        rows = rotation.fetch("SELECT object_id FROM billing.stripe_events WHERE handled_at IS NOT NULL")
        return {row["object_id"] for row in rows} >= set(happened)

    await eventually(all_are_stored, within_s=60, every_s=0.5)
    assert happened

    await rotation.apply("webhook", "--finish")
    assert [await status_of(old), await status_of(new)] == [400, 200]
    await stripe_event(rotation.environment)
    await rotation.nothing_is_lost(record)
    print(f"{len(happened)} things happened at Stripe during the rotation, and all were told; {record.statuses}")


async def _customers(environment: Mapping[str, str], happened: list[str], *, until: asyncio.Event) -> None:
    """A few a second; the emulator restarts, too, and is asked again."""
    over = asyncio.ensure_future(until.wait())
    auth = (environment["STRIPE_SECRET_KEY"], "")
    async with httpx.AsyncClient(base_url=environment["STRIPE_API_BASE"], auth=auth) as client:

        async def made() -> str | None:
            with contextlib.suppress(httpx.TransportError):
                answer = await client.post("/v1/customers", data={"email": "someone@example.com"})
                return answer.json()["id"] if answer.is_success else None
            return None

        while not over.done():
            happened.append(str(await eventually(made, within_s=60, every_s=0.1)))
            await asyncio.wait({over}, timeout=0.1)


async def test_api_keys_end_with_the_restart_and_people_stay_signed_in(rotation: Rotation) -> None:
    async with (
        rotation.gateway("NEXT_PUBLIC_SUPABASE_ANON_KEY") as old_anon,
        rotation.gateway("SUPABASE_SERVICE_ROLE_KEY") as old_admin,
    ):
        # Their frontends still send the old key beside the token, which is what counts.
        await rotation.under_load("api-keys")
        async with (
            rotation.gateway("NEXT_PUBLIC_SUPABASE_ANON_KEY") as anon,
            rotation.gateway("SUPABASE_SERVICE_ROLE_KEY") as admin,
        ):
            for client, status in ((old_anon, 401), (anon, 200)):
                body = {"email": f"{new_id().hex}@example.com", "password": "correct horse battery"}
                assert (await client.post("/auth/v1/signup", json=body)).status_code == status
            for client, status in ((old_admin, 401), (admin, 200)):
                bearer = {"Authorization": f"Bearer {client.headers['apikey']}"}
                assert (await client.get("/auth/v1/admin/users", headers=bearer)).status_code == status


@pytest.mark.parametrize(
    ("given", "command", "kept"),
    [
        ("whsec_a", ("--new", "whsec_b"), "whsec_b,whsec_a"),
        ("whsec_a,whsec_thin", ("--new", "whsec_b"), "whsec_b,whsec_a,whsec_thin"),
        ("whsec_b,whsec_a", ("--new", "whsec_b"), "whsec_b,whsec_a"),
        ("whsec_b,whsec_a", ("--finish",), "whsec_b"),
        ("whsec_b,whsec_a,whsec_thin", ("--finish", "--old", "whsec_a"), "whsec_b,whsec_thin"),
        ("whsec_b,whsec_a,whsec_thin", ("--finish",), None),
        ("whsec_b,whsec_a", ("--finish", "--old", "whsec_c"), None),
        ("whsec_a", ("--finish",), None),
    ],
)
def test_rotating_one_webhook_leaves_the_secrets_of_others(
    rotation: Rotation, tmp_path: Any, given: str, command: tuple[str, ...], kept: str | None
) -> None:
    path = tmp_path / "production.env"
    path.write_text(f"STRIPE_WEBHOOK_SECRET={given}\n")
    answer = rotation.operator.venture("rotate", "webhook", *command, "--file", str(path), "--yes")
    assert (answer.code == 0) == (kept is not None), answer.err
    assert dotenv.parse(path.read_text())["STRIPE_WEBHOOK_SECRET"] == (kept or given)
    assert not [one for one in given.split(",") if one in answer.out + answer.err]
