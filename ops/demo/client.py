"""What a person's browser does, with patience: calls that outlive a restart behind the door, and event streams."""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import httpx
import orjson

from libs.common.ids import new_id

PATIENCE_S: Final = 30.0
POLL_S: Final = 0.3  # a free user may ask a hundred times in a quarter of an hour
_AGAIN: Final = {502, 503, 504}
_LONGEST_PAUSE_S: Final = 2.0

T = TypeVar("T")


class DemoFailure(Exception):
    """A step did not hold; the text says what was expected and what was seen."""


class Client:
    """Signed in or not. Refused connections and 503s are tried again for half a minute: a service may be restarting."""

    def __init__(self, base_url: str, *, api_key: str) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=10, headers={"apikey": api_key})

    def sign_in(self, access_token: str) -> None:
        self._http.headers["Authorization"] = f"Bearer {access_token}"

    def call(
        self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        return _patiently(lambda: self._http.request(method, path, json=body, headers=headers))

    def create(self, path: str, body: Any, *, wait_s: int = 0) -> httpx.Response:
        """POST with an idempotency key, so that trying again after a broken connection makes nothing twice.

        With `wait_s` a run's answer is the finished run (200), if it ends in time.
        """
        headers = {"Idempotency-Key": str(new_id())} | ({"Prefer": f"wait={wait_s}"} if wait_s else {})
        return self.call("POST", path, body=body, headers=headers)

    def expect(self, response: httpx.Response, status: int) -> Any:
        if response.status_code != status:
            raise DemoFailure(
                f"{response.request.method} {response.request.url.path}: expected {status}, "
                f"got {response.status_code}: {response.text[:300]}"
            )
        return orjson.loads(response.content) if response.content else None

    def events(self, path: str) -> Generator[tuple[int, str, Any], None, None]:
        """Follow a run's stream to its end; after a cut, resume behind the last event seen."""
        last, deadline = 0, time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                with self._stream(path, last) as response:
                    for number, event, data in _parse(response):
                        if number != last + 1:
                            raise DemoFailure(f"{path}: event {number} came after {last}")
                        last, deadline = number, time.monotonic() + PATIENCE_S
                        yield number, event, data
                        if event in {"run.succeeded", "run.failed", "run.cancelled", "run.timed_out"}:
                            return
            except httpx.TransportError:
                time.sleep(0.3)
        raise DemoFailure(f"{path}: no terminal event within {PATIENCE_S:g} s after event {last}")

    @contextmanager
    def _stream(self, path: str, last: int) -> Generator[httpx.Response, None, None]:
        headers = {"Last-Event-ID": str(last)} if last else {}
        with self._http.stream("GET", path, headers=headers, timeout=httpx.Timeout(10, read=20)) as response:
            if response.status_code in _AGAIN:
                raise httpx.TransportError("not ready yet")
            if response.status_code != 200:  # noqa: PLR2004
                raise DemoFailure(f"{path}: expected a stream, got {response.status_code}")
            yield response

    def close(self) -> None:
        self._http.close()


def _patiently(attempt: Callable[[], httpx.Response]) -> httpx.Response:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        pause_s = 0.3
        try:
            response = attempt()
            if response.status_code not in _AGAIN and not _is_in_flight(response):
                return response
            reason = f"{response.status_code}: {response.text[:200]}"
            # As told: every try counts towards the limit of requests, which a quicker one would use up meanwhile.
            pause_s = min(float(response.headers.get("Retry-After", pause_s)), _LONGEST_PAUSE_S)
        except httpx.TransportError as error:
            reason = f"{type(error).__name__}: {error}"
        if time.monotonic() > deadline:
            raise DemoFailure(f"no answer within {PATIENCE_S:g} s; the last was {reason}")
        time.sleep(pause_s)


def _is_in_flight(response: httpx.Response) -> bool:
    """Our own first try, cut off by a killed process, still has the key for some seconds."""
    return response.status_code == 409 and response.json().get("code") == "gateway.idempotency_key_in_flight"  # noqa: PLR2004


def _parse(response: httpx.Response) -> Generator[tuple[int, str, Any], None, None]:
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield int(fields["id"]), fields["event"], orjson.loads(fields["data"])
            fields = {}


def until(probe: Callable[[], T | None], *, what: str, within_s: float = PATIENCE_S) -> T:
    """The first answer that is not None or False; DemoFailure naming `what` when the time is up."""
    deadline = time.monotonic() + within_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise DemoFailure(f"{what}: not within {within_s:g} s")
        time.sleep(POLL_S)
