"""Stripe during a soak: people buy, change and cancel at the stand-in, whose webhooks come twice and out of order."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from libs.common.ids import new_id
from tests.faults.soak.books import BrokenPromise
from tests.faults.soak.door import GIVES_UP_AFTER_S, Door

TIERS: Final = {"pro": "pro_monthly", "pro+": "pro_plus_monthly", "enterprise": "enterprise_monthly"}
COPIES: Final = 2
_ROUND_S: Final = 4.0
_TRIES_S: Final = 60.0


async def wait_for(probe: Callable[[], Awaitable[bool]], *, what: str, within_s: float, every_s: float) -> None:
    """Until it is so. Raises BrokenPromise when the time is up."""
    deadline = time.monotonic() + within_s
    while not await probe():
        if time.monotonic() > deadline:
            raise BrokenPromise(f"{what}: not within {within_s:g} s")
        await asyncio.sleep(every_s)


@dataclass(slots=True, kw_only=True)
class Stripe:
    """The stand-in as its dashboard is used. It is killed, too: every call is made again under the same key."""

    base_url: str
    secret_key: str
    client: httpx.AsyncClient
    chance: random.Random

    async def call(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.secret_key}"}
        if path.startswith("/v1/") and method == "POST":
            headers["Idempotency-Key"] = str(new_id())
        began = time.monotonic()
        while True:
            try:
                answer = await self.client.request(method, f"{self.base_url}{path}", headers=headers, **content)
            except httpx.TransportError as error:
                problem = repr(error)
            else:
                if answer.status_code < 400:
                    return answer.json()
                problem = f"{answer.status_code} {answer.text[:300]}"
                if answer.status_code not in {409, 429, 500, 503}:
                    raise RuntimeError(f"the stand-in refuses {method} {path}: {problem}")
            if time.monotonic() - began > _TRIES_S:
                raise RuntimeError(f"the stand-in does not serve {method} {path}: {problem}")
            await asyncio.sleep(0.3)

    async def subscription(self, subscription_id: str) -> dict[str, Any]:
        return await self.call("GET", f"/v1/subscriptions/{subscription_id}")

    async def live_with(self, door: Door, user_id: str, headers: Mapping[str, str]) -> None:
        """Buy, wait for the plan, and change it up to three times, without waiting for what follows."""
        key = {"Idempotency-Key": str(new_id())}
        checkout = await door.surely(
            "POST", "/v1/billing/checkout", done=(201,), json={"tier": "pro"}, headers={**headers, **key}
        )
        path = "/" + checkout.json()["url"].split("/", 3)[3]
        session = await self._pay(path)
        door.books.attempt("subscription", [session["subscription"]])
        door.books.accept("subscription", [session["subscription"]])
        door.books.paying[user_id] = session["subscription"]

        async def has_plan() -> bool:
            plan = (await door.surely("GET", "/v1/billing/subscription", headers=headers)).json()
            return plan["tier"] == "pro"

        await wait_for(has_plan, what="the plan that was paid for", within_s=GIVES_UP_AFTER_S, every_s=0.5)
        for _ in range(self.chance.randint(0, 3)):
            await self._change(session["subscription"])
            await asyncio.sleep(self.chance.uniform(0, 1))

    async def _pay(self, path: str) -> dict[str, Any]:
        """At the hosted page. If the answer to the first try was lost, the session says what came of it."""
        try:
            answer = await self.client.post(f"{self.base_url}{path}/complete", json={"card": "pm_card_visa"})
            if answer.status_code < 400:
                return answer.json()
        except httpx.TransportError:
            pass
        session = await self.call("GET", f"/v1/checkout/sessions/{path.rpartition('/')[2]}")
        if session["status"] == "complete":
            return session
        await asyncio.sleep(0.5)
        return await self._pay(path)

    async def _change(self, subscription_id: str) -> None:
        subscription = await self.subscription(subscription_id)
        if subscription["status"] == "canceled":
            return
        path, kind = f"/v1/subscriptions/{subscription_id}", self.chance.random()
        if kind < 0.6:
            key = self.chance.choice(list(TIERS.values()))
            price = (await self.call("GET", "/v1/prices", params={"lookup_keys[0]": key}))["data"][0]["id"]
            item = subscription["items"]["data"][0]["id"]
            await self.call("POST", path, data={"items[0][id]": item, "items[0][price]": price})
        elif kind < 0.8:
            await self.call("POST", path, data={"cancel_at_period_end": "true"})
        else:
            await self.call("DELETE", path)

    async def post_office(self, door: Door, over: asyncio.Event) -> None:
        """Every delivery twice and shuffled, some old event sent again, and somebody who forges one."""
        await self.call("POST", "/_emulator/deliveries", json={"copies": COPIES, "shuffles": True})
        while not over.is_set():
            await asyncio.sleep(_ROUND_S)
            await self.call("POST", "/_emulator/deliveries/flush")
            events = (await self.call("GET", "/v1/events", params={"limit": "50"}))["data"]
            if events:
                again = self.chance.choice(events)["id"]
                await self.call("POST", "/_emulator/deliveries/redeliver", json={"event": again})
                door.books.duplicates += 1
            await door.surely(
                "POST",
                "/billing/webhook",
                done=(400,),
                content=b'{"id": "evt_forged", "type": "customer.subscription.deleted"}',
                headers={"Stripe-Signature": "t=1,v1=00"},
            )
            door.books.forged += 1


def tier_of(subscription: dict[str, Any]) -> str:
    """The tier that follows from the object as Stripe has it; those here are active or cancelled."""
    if subscription["status"] == "canceled":
        return "free"
    key = subscription["items"]["data"][0]["price"]["lookup_key"]
    return next(tier for tier, lookup_key in TIERS.items() if lookup_key == key)
