"""Who uses the product during a soak: visitors who sign up, run, read and buy; somebody who asks for too much."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from libs.common.ids import new_id
from tests.faults.soak.books import BrokenPromise
from tests.faults.soak.door import GIVES_UP_AFTER_S, Door, code_of
from tests.faults.soak.money import Stripe, wait_for
from tests.faults.streams import Reader, event_id

MOST_RUNS: Final = 4
CHANCE_TO_BUY: Final = 0.4
_PIECE: Final = 10_000


@dataclass(slots=True, kw_only=True)
class Visitor:
    id: str
    headers: dict[str, str]


@dataclass(slots=True, kw_only=True)
class People:
    door: Door
    stripe: Stripe
    over: asyncio.Event
    everybody: list[str] = field(default_factory=list[str])
    a_run: str = ""
    """Somebody's run, for the next one to reach for."""

    async def sign_up(self) -> Visitor:
        body = {"email": f"{new_id().hex}@example.com", "password": new_id().hex}
        self.door.books.attempt("sign-up", [body["email"]])
        answer = await self.door.surely("POST", "/auth/v1/signup", done=(200, 422), json=body)
        if answer.status_code == 422:  # a try of ours whose answer was lost had made the account
            if code_of(answer) != "user_already_exists":
                raise BrokenPromise(f"sign-up answered {answer.text[:300]}")
            answer = await self.door.surely("POST", "/auth/v1/token?grant_type=password", json=body)
        session = answer.json()
        self.door.books.accept("sign-up", [body["email"]])
        self.everybody.append(session["user"]["id"])
        return Visitor(id=session["user"]["id"], headers={"Authorization": f"Bearer {session['access_token']}"})

    async def visit(self) -> None:
        """A life after another: sign up, look around, run some, follow each, look again, sometimes buy."""
        while not self.over.is_set():
            visitor = await self.sign_up()
            await self.door.surely("GET", "/v1/profile", headers=visitor.headers)
            for _ in range(self.door.chance.randint(1, MOST_RUNS)):
                await self.follow(visitor, await self.order(visitor))
                await self._pause(0.5, 2)
            await self.door.surely("GET", "/v1/usage", headers=visitor.headers)
            await self.reach_for_anothers_run(visitor)
            if self.door.chance.random() < CHANCE_TO_BUY:
                await self.stripe.live_with(self.door, visitor.id, visitor.headers)
            await self._pause(0.5, 2)

    async def ask_for_too_much(self) -> None:
        """Order runs until the plan has none left, and wait for their ends: what is let in never passes the limit."""
        while not self.over.is_set():
            visitor = await self.sign_up()
            self.door.books.limited.add(visitor.id)
            while not self.over.is_set() and await self.order(visitor):
                await self._pause(0.3, 1.2)

    async def order(self, visitor: Visitor) -> str:
        """The accepted run's id; nothing if the plan is used up."""
        key, body = str(new_id()), {"task": "Name one risk of the plan", "max_output_tokens": 80}
        self.door.books.attempt("run", [key])
        answer = await self.door.surely(
            "POST", "/v1/runs", done=(202, 429), json=body, headers={**visitor.headers, "Idempotency-Key": key}
        )
        if answer.status_code == 429:
            if code_of(answer) != "metering.quota_exceeded":
                raise BrokenPromise(f"a run was refused: {answer.text[:300]}")
            return ""
        run_id = str(answer.json()["id"])
        self.door.books.accept("run", [run_id])
        return run_id

    async def follow(self, visitor: Visitor, run_id: str) -> None:
        """Read the run's stream to its end, whatever cuts it: no event missing, none twice, the text as kept."""
        reader = Reader(self.door.gateways, {"apikey": self.door.api_key, **visitor.headers}, run_id)

        async def has_ended() -> bool:
            await reader.read_some(_PIECE)
            return reader.has_ended

        await wait_for(has_ended, what=f"the end of the stream of run {run_id}", within_s=GIVES_UP_AFTER_S, every_s=0.3)
        numbers = [int(event_id(frame)) for frame in reader.frames]
        if numbers != list(range(1, len(numbers) + 1)):
            raise BrokenPromise(f"the stream of run {run_id} came as {numbers}")
        run = (await self.door.surely("GET", f"/v1/runs/{run_id}", headers=visitor.headers)).json()
        if run["status"] == "succeeded" and run["output"] != _text_of(reader.frames):
            raise BrokenPromise(f"the text streamed of run {run_id} is not its output")
        self.door.books.streams += 1
        self.door.books.cuts += reader.cuts
        self.a_run = self.a_run or run_id

    async def reach_for_anothers_run(self, visitor: Visitor) -> None:
        anothers, self.a_run = self.a_run, ""
        if not anothers:
            return
        mine = (await self.door.surely("GET", "/v1/runs?limit=50", headers=visitor.headers)).text
        if anothers not in mine:
            await self.door.surely("GET", f"/v1/runs/{anothers}", done=(404,), headers=visitor.headers)

    async def _pause(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self.door.chance.uniform(least_s, most_s))


def _text_of(frames: list[bytes]) -> str:
    """What was streamed since the last attempt began."""
    text = ""
    for frame in frames:
        fields = dict(line.split(b": ", 1) for line in frame.split(b"\n") if b": " in line)
        data: dict[str, Any] = orjson.loads(fields[b"data"])
        if fields[b"event"] == b"run.started":
            text = ""
        if fields[b"event"] == b"run.delta":
            text += data["text"]
    return text
