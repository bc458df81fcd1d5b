"""Webhook deliveries: signed, prompt, and repeated with back-off until the endpoint answers 2xx."""

import asyncio
import hashlib
import hmac
import random
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import httpx
import orjson

from devkit.clock import wall_time_s
from devkit.stripe.errors import Json
from devkit.stripe.world import World, copied, visible

AT_ONCE = 8
LONGEST_SLEEP_S = 3_600.0
SHUFFLE_WINDOW_S = 0.2


@dataclass(slots=True, kw_only=True)
class Conduct:
    """How deliveries are disturbed on purpose."""

    is_paused: bool = False
    copies: int = 1
    shuffles: bool = False


def signature(secret: str, payload: bytes, at: int) -> str:
    """The `Stripe-Signature` header (docs.stripe.com/webhooks/signature).

    While a secret is rolled an endpoint has several, separated by commas here, and each signs.
    """
    signed = f"{at}.".encode() + payload
    digests = [hmac.new(one.strip().encode(), signed, hashlib.sha256).hexdigest() for one in secret.split(",")]
    return ",".join([f"t={at}", *(f"v1={digest}" for digest in digests)])


class Deliverer:
    """Takes pending deliveries from the store; what is pending survives a restart, because only a 2xx ends it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._wake = asyncio.Event()
        self._flying: set[int] = set()
        self._order = random.Random(8420)  # noqa: S311 - disorder on purpose, and the same one every time

    def wake(self) -> None:
        self._wake.set()

    def conduct(self) -> Conduct:
        return Conduct(**self.world.store.document("conduct", {}))

    async def run(self) -> None:
        """Deliver until cancelled."""
        limits = httpx.Limits(max_connections=AT_ONCE)
        async with (
            httpx.AsyncClient(timeout=self.world.settings.delivery_timeout_s, limits=limits, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            while True:
                self._wake.clear()
                conduct = self.conduct()
                for row in [] if conduct.is_paused else self._take(conduct):
                    self._flying.add(row["id"])
                    group.create_task(self._deliver(client, row, conduct.copies))
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._idle_s(conduct)):
                        await self._wake.wait()
                if conduct.shuffles:
                    await asyncio.sleep(SHUFFLE_WINDOW_S)  # let a few gather, so that there is something to shuffle

    def _take(self, conduct: Conduct) -> list[sqlite3.Row]:
        rows = self.world.store.sql.execute(
            "SELECT * FROM deliveries WHERE state = 'pending' AND next_at <= ? ORDER BY next_at, id LIMIT ?",
            (wall_time_s(), AT_ONCE + len(self._flying) + (100 if conduct.shuffles else 0)),
        ).fetchall()
        waiting = [row for row in rows if row["id"] not in self._flying]
        if conduct.shuffles:
            self._order.shuffle(waiting)
        return waiting[: max(AT_ONCE - len(self._flying), 0)]

    def _idle_s(self, conduct: Conduct) -> float:
        if conduct.is_paused or len(self._flying) >= AT_ONCE:
            return LONGEST_SLEEP_S
        row = self.world.store.sql.execute(
            "SELECT id, next_at FROM deliveries WHERE state = 'pending' ORDER BY next_at LIMIT ?", (AT_ONCE * 2,)
        ).fetchall()
        coming = [one["next_at"] for one in row if one["id"] not in self._flying]
        return max(min(coming) - wall_time_s(), 0.0) if coming else LONGEST_SLEEP_S

    async def _deliver(self, client: httpx.AsyncClient, row: sqlite3.Row, copies: int) -> None:
        try:
            endpoint = self.world.store.find(row["endpoint"])
            event = self.world.store.find(row["event"])
            if endpoint is None or event is None or endpoint.get("deleted") or endpoint["status"] != "enabled":
                self._close(row, "dropped", None, "the endpoint is gone or disabled")
                return
            body = visible(event)
            if body["object"] == "v2.core.event":
                body.pop("data")  # a thin event carries no data; the receiver fetches it
            payload = orjson.dumps(body)
            for _ in range(copies - 1):
                await self._post(client, endpoint, payload)
            status, problem = await self._post(client, endpoint, payload)
            if status is not None and httpx.codes.is_success(status):
                self._close(row, "delivered", status, None)
            else:
                self._postpone(row, status, problem)
        finally:
            self._flying.discard(row["id"])
            self._wake.set()

    async def _post(self, client: httpx.AsyncClient, endpoint: Json, payload: bytes) -> tuple[int | None, str | None]:
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "Stripe/1.0 (local emulator)",
            # Real time, not the emulated clock: receivers compare it with their own.
            "Stripe-Signature": signature(endpoint["_secret"], payload, int(wall_time_s())),
        }
        try:
            answer = await client.post(endpoint.get("_url") or endpoint["url"], content=payload, headers=headers)
        except (httpx.HTTPError, AttributeError) as error:
            # AttributeError: the backend asks a socket for its address that has just gone with the server behind it.
            return None, f"{type(error).__name__}: {error}"
        return answer.status_code, None

    def _close(self, row: sqlite3.Row, state: str, status: int | None, problem: str | None) -> None:
        with self.world.store.transaction():
            # Only a pending row is closed: after a reset the id may be gone or belong to a later delivery.
            changed = self.world.store.sql.execute(
                """
                UPDATE deliveries SET state = ?, attempts = attempts + 1, last_status = ?, last_error = ?
                WHERE id = ? AND event = ? AND state = 'pending'
                """,
                (state, status, problem, row["id"], row["event"]),
            ).rowcount
            event = self.world.store.find(row["event"])
            if changed and event is not None and "pending_webhooks" in event:
                left = max(cast("int", event["pending_webhooks"]) - 1, 0)
                self.world.store.put(copied(event) | {"pending_webhooks": left})

    def _postpone(self, row: sqlite3.Row, status: int | None, problem: str | None) -> None:
        settings = self.world.settings
        pause_s = min(settings.delivery_base_s * 2 ** min(row["attempts"], 20), settings.delivery_cap_s)
        with self.world.store.transaction():
            self.world.store.sql.execute(
                """
                UPDATE deliveries SET attempts = attempts + 1, next_at = ?, last_status = ?, last_error = ?
                WHERE id = ? AND event = ? AND state = 'pending'
                """,
                (wall_time_s() + pause_s, status, problem, row["id"], row["event"]),
            )
