"""Secrets and personal text that are easily recognised, and one walk that takes them down every path of the house."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import httpx

from libs.common.broker import queue_name
from libs.common.events.gateway import RunRequested, UserCreated, UserDeleted
from libs.common.ids import new_id
from tests.harness.house import House
from tests.harness.patience import eventually

PASSWORD = "canary-password-8f1c"
NEW_PASSWORD = "canary-password-next-41d0"
EMAIL = "canary.person.77aa@example.com"
PROMPT = "canary prompt 5d2e: sell umbrellas"
SIGNING = "whsec_canary0123456789abcdef"
STRIPE = "sk_live_canary0123456789"
PROVIDER = "sk-canary-provider-0123456789abcdef"
PERSONAL = "canary personal note 91be"
MODEL = "openai:gpt-4o-mini"


@dataclass(kw_only=True)
class Walk:
    """What was sent, and every answer that came back."""

    house: House
    client: httpx.AsyncClient
    answers: list[httpx.Response] = field(default_factory=list[httpx.Response])
    secrets: dict[str, str] = field(
        default_factory=lambda: {
            "password": PASSWORD,
            "new password": NEW_PASSWORD,
            "Stripe's signing secret": SIGNING,
            "Stripe's key": STRIPE,
            "provider's key": PROVIDER,
        }
    )

    def hits(self, text: str, *, personal: bool = True) -> list[str]:
        """Which canaries are in the text; without `personal` the secret ones alone."""
        others = {"e-mail": EMAIL, "prompt": PROMPT, "note": PERSONAL} if personal else {}
        return [name for name, canary in {**self.secrets, **others}.items() if canary in text]

    async def send(self, method: str, path: str, *, token: str = "", **request: Any) -> httpx.Response:
        own = {"Authorization": f"Bearer {token}"} if token else {}
        request["headers"] = {**self.house.anon_headers(), **own, **request.get("headers", {})}
        answer = await self.client.request(method, path, **request)
        self.answers.append(answer)
        return answer

    async def grant(self, kind: str, **body: Any) -> dict[str, Any]:
        return (await self.send("POST", f"/auth/v1/token?grant_type={kind}", json=body)).json()

    async def sign_up_and_in(self) -> None:
        """Right and wrong, known and unknown, well formed and not; tokens where they belong and where they do not."""
        body = {"email": EMAIL, "password": PASSWORD, "data": {"name": PERSONAL}}
        session = (await self.send("POST", "/auth/v1/signup", json=body)).json()
        access, refresh = session["access_token"], session["refresh_token"]
        for email, password in (
            (EMAIL, PASSWORD),
            (EMAIL, f"{PASSWORD}-wrong"),
            (f"unknown.{EMAIL}", PASSWORD),
            (EMAIL, [PASSWORD]),
            ({"canary": EMAIL}, PASSWORD),
        ):
            await self.grant("password", email=email, password=password)
        cut_off = f'{{"email": "{EMAIL}", "password": "{PASSWORD}"'
        await self.send("POST", "/auth/v1/token?grant_type=password", content=cut_off)
        await self.send("POST", "/auth/v1/signup", json={"email": EMAIL, "password": PASSWORD})
        await self.send("POST", "/auth/v1/signup", json={"email": f"{EMAIL}\r\nBcc:x@y.z", "password": PASSWORD})
        refreshed = await self.grant("refresh_token", refresh_token=refresh)
        await self.grant("refresh_token", refresh_token=f"{refresh}x")
        await self.send("GET", f"/v1/profile?access_token={access}")
        await self.send("GET", "/v1/profile", token=f"{access}x")
        await self.send("GET", "/v1/profile", headers={"Cookie": f"sb-access-token={access}", "X-Token": refresh})
        await self.send("GET", f"/v1/{PASSWORD}/{EMAIL}", token=access)
        self.secrets |= {
            "access token": access,
            "refresh token": refresh,
            "second refresh token": refreshed["refresh_token"],
        }

    async def recover(self) -> str:
        """A new password by mail; the access token it gave."""
        await self.send("POST", "/auth/v1/recover", json={"email": EMAIL})
        (mail,) = await self.house.place.database.fetch("SELECT content FROM gateway.mails WHERE letter = 'recovery'")
        found = re.search(r"token(?:_hash)?=([^&]+)", mail["content"]["link"])
        assert found is not None
        token = found[1]
        await self.send("GET", f"/auth/v1/verify?token={token}&type=email_change")
        await self.send("POST", "/auth/v1/verify", json={"token_hash": f"{token}x", "type": "recovery"})
        session = (await self.send("POST", "/auth/v1/verify", json={"token_hash": token, "type": "recovery"})).json()
        access: str = session["access_token"]
        await self.send("PUT", "/auth/v1/user", json={"password": NEW_PASSWORD}, token=access)
        self.secrets |= {
            "recovered access token": access,
            "reset token": token,
            "reset code": str(mail["content"]["code"]),
        }
        return access

    async def work(self, token: str) -> None:
        """Runs, templates, a profile: accepted, refused, and broken on the way."""
        task = {"task": PROMPT, "context": {"note": PERSONAL}}
        await self.send("POST", "/v1/runs", json=task, token=token, headers={"Prefer": "wait=20"})
        for broken in ({"task": PROMPT, "unknown": PERSONAL}, {"task": [PROMPT]}, {"task": f"{PROMPT}\u0000"}):
            await self.send("POST", "/v1/runs", json=broken, token=token)
        is_json = {"content-type": "application/json"}
        await self.send("POST", "/v1/runs", content=f'{{"task": "{PROMPT}"', token=token, headers=is_json)
        await self.send("POST", "/v1/runs", json={"task": PROMPT}, token=token, headers={"Idempotency-Key": "a b"})
        await self.send("POST", "/v1/prompts/preview", json={"task": PROMPT}, token=token)
        template = {"name": PERSONAL, "agent_type": "suggestion", "instructions": PROMPT}
        await self.send("POST", "/v1/templates", json=template, token=token)
        await self.send("PATCH", "/v1/profile", json={"company_context": PERSONAL}, token=token)
        broken_profile = {"company_context": f"{PERSONAL}\u0000", "timezone": PERSONAL}
        await self.send("PATCH", "/v1/profile", json=broken_profile, token=token)
        await self.send("GET", f"/v1/runs?q={PROMPT}&cursor={PERSONAL}", token=token)

    async def use_keys(self, token: str) -> None:
        """Keys of programs, secrets of webhooks, signatures that fit and that do not."""
        body = {"name": "canary", "scopes": ["runs"]}
        key = (await self.send("POST", "/v1/api-keys", json=body, token=token)).json()["key"]
        for given in (key, f"{key}x"):
            await self.send("GET", "/v1/runs", token=given)
        body = {"kind": "gitlab", "name": "canary"}
        hook = (await self.send("POST", "/v1/webhook-endpoints", json=body, token=token)).json()
        for secret in (hook["secret"], f"{hook['secret']}x"):
            headers = {"X-Gitlab-Token": secret, "X-Gitlab-Event": "Push Hook"}
            await self.send("POST", hook["path"], json={"note": PERSONAL}, headers=headers)
        signed = {"Stripe-Signature": f"t=1,v1={SIGNING}", "X-Key": STRIPE}
        await self.send("POST", "/billing/webhook", content=PERSONAL, headers=signed)
        await self.send("POST", "/billing/webhook", json={"id": STRIPE, "email": EMAIL})
        self.secrets |= {"API key": key, "webhook secret": hook["secret"]}

    async def reuse_an_old_token(self) -> None:
        """Somebody comes with a refresh token of long ago: the family ends."""
        first = latest = (await self.grant("password", email=EMAIL, password=NEW_PASSWORD))["refresh_token"]
        for _ in range(2):
            latest = (await self.grant("refresh_token", refresh_token=latest))["refresh_token"]
        long_ago = "UPDATE auth.sessions SET refreshed_at = now() - interval '1 minute'"
        await self.house.place.database.execute(long_ago)
        await self.grant("refresh_token", refresh_token=first)
        self.secrets |= {"old refresh token": first, "last refresh token": latest}

    async def be_refused_by_the_provider(self) -> None:
        async with self.house.person() as payer:
            to_plan = "UPDATE public.user_profiles SET subscription_tier = 'enterprise' WHERE user_id = $1::uuid"
            await self.house.place.database.execute(to_plan, payer.id)

            async def is_refused() -> bool:
                asked = {"task": PROMPT, "model": MODEL}
                self.answers.append(await payer.client.post("/v1/runs", json=asked, headers={"Prefer": "wait=20"}))
                run = self.answers[-1].json()
                return run.get("status") == "failed" and "provider" in str(run["error"])

            await eventually(is_refused, within_s=20, every_s=0.3)
            self.answers.append(await payer.client.get(f"/v1/runs/{self.answers[-1].json()['id']}/events"))


async def walk(house: House) -> Walk:
    async with httpx.AsyncClient(base_url=house.gateway.base_url, timeout=30) as client:
        it = Walk(house=house, client=client)
        await it.sign_up_and_in()
        token = await it.recover()
        await it.work(token)
        await it.use_keys(token)
        await it.reuse_an_old_token()
        await it.be_refused_by_the_provider()
        return it


async def park(house: House) -> list[dict[str, Any]]:
    """Headers of messages that could not be handled, with canaries in every place of their bodies."""
    envelope = {"specversion": "1.0", "id": str(new_id()), "source": "gateway", "time": "2026-01-01T00:00:00Z"}
    contents: tuple[Any, ...] = (
        {"email": EMAIL, "password": PASSWORD},
        {**envelope, "type": "gateway.nothing.v1", "data": {"task": PROMPT}},
        {**envelope, "type": UserDeleted.type, "data": {"user_id": PERSONAL, "stripe_customer_id": STRIPE}},
        {**envelope, "type": RunRequested.type, "data": {"run_id": PERSONAL, "task": [PROMPT]}},
    )
    bodies = [PERSONAL.encode(), *(json.dumps(content).encode() for content in contents)]
    queues = [queue_name("agents", event.type) for event in (UserDeleted, RunRequested, UserCreated)]
    connection = await aio_pika.connect(house.place.amqp_url("operator"))
    async with connection, connection.channel() as channel:
        for queue in queues:
            for body in bodies:
                message = aio_pika.Message(body, message_id=str(new_id()))
                await channel.default_exchange.publish(message, routing_key=queue)
    found: list[dict[str, Any]] = []

    async def all_parked() -> bool:
        for queue in queues:
            found.extend(dict(message.headers) for message in await house.place.parked(queue))
        return len(found) >= len(bodies) * len(queues)

    await eventually(all_parked, every_s=0.2)
    return found


@asynccontextmanager
async def refusing_provider() -> AsyncGenerator[str, None]:
    """A model provider that refuses, and repeats the key it was given, as real ones do."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps({"error": {"message": f"Incorrect API key provided: {PROVIDER}", "code": "invalid_api_key"}})
        head = f"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
