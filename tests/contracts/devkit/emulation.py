"""The emulator as a process of its own, a receiver for its webhooks, and the builders that the tests share."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self, TypeVar

import httpx
import stripe

ROOT = Path(__file__).parents[3]
PLANS = """
[tiers.free]
name = "Free"
[tiers.pro]
name = "Pro"
stripe_lookup_key = "pro_monthly"
price_minor = 2900
currency = "usd"
interval = "month"
[tiers."pro+"]
name = "Pro+"
stripe_lookup_key = "pro_plus_monthly"
price_minor = 9900
currency = "usd"
interval = "month"
"""
SECRET = "whsec_of_the_tests"
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(look: Callable[[], T | None], *, within_s: float = 10.0) -> T:
    """What `look` gives once it gives something true; fails when that takes too long."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing within {within_s} s; last seen: {found!r}")
        time.sleep(0.02)


class Process:
    """A module of the devkit run as a program."""

    def __init__(self, module: str, *flags: str) -> None:
        self.command = [sys.executable, "-m", module, *flags]
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, ready_url: str) -> None:
        self.child = subprocess.Popen(self.command, cwd=ROOT)
        eventually(lambda: self._is_ready(ready_url))

    def _is_ready(self, url: str) -> bool:
        assert self.child is not None
        assert self.child.poll() is None, "the process ended instead of getting ready"
        try:
            return httpx.get(url, timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()

    def resident_mb(self) -> float:
        assert self.child is not None
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


class Emulator(Process):
    """The Stripe emulator on a free port with its state in a directory of its own."""

    def __init__(self, home: Path, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        plans = home / "plans.toml"
        plans.write_text(PLANS)
        super().__init__(
            "devkit.stripe",
            "--port",
            str(self.port),
            "--state",
            str(home / "stripe.db"),
            "--seed-plans",
            str(plans),
            "--delivery-base-s",
            "0.05",
            *flags,
        )

    def run(self) -> "Emulator":
        self.start(f"{self.url}/_emulator/health")
        return self

    def client(self, key: str = "sk_test_contract", *, retries: int = 0) -> stripe.StripeClient:
        return stripe.StripeClient(key, base_addresses={"api": self.url}, max_network_retries=retries)

    def control(self, method: str, action: str, body: dict[str, Any] | None = None, **query: Any) -> dict[str, Any]:
        answer = httpx.request(
            method, f"{self.url}/_emulator{action}", json=body, params={k: str(v) for k, v in query.items()}, timeout=30
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@dataclass
class Delivery:
    body: bytes
    signature: str


@dataclass
class Receiver:
    """An endpoint that remembers what it got; `statuses` are its next answers, then 200."""

    statuses: list[int] = field(default_factory=list[int])
    got: list[Delivery] = field(default_factory=list[Delivery])
    url: str = ""

    def __enter__(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(Delivery(body, self.headers["Stripe-Signature"]))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002, ARG002 - the base class's names
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def events(self, secret: str = SECRET) -> list[stripe.Event]:
        """What came, verified by the SDK itself."""
        return [stripe.Webhook.construct_event(one.body, one.signature, secret) for one in list(self.got)]  # pyright: ignore[reportUnknownMemberType] - the SDK leaves its tolerance untyped

    def types(self, secret: str = SECRET) -> list[str]:
        return [event.type for event in self.events(secret)]


def a_customer(
    client: stripe.StripeClient,
    *,
    card: str | None = "pm_card_visa",
    clock: str | None = None,
    email: str = "a@b.example",
) -> stripe.Customer:
    fields: Any = {"email": email} | ({"test_clock": clock} if clock else {})
    customer = client.v1.customers.create(fields)
    if card is not None:
        method = client.v1.payment_methods.attach(card, {"customer": customer.id})
        client.v1.customers.update(customer.id, {"invoice_settings": {"default_payment_method": method.id}})
    return customer


def the_price(client: stripe.StripeClient, key: str = "pro_monthly") -> stripe.Price:
    return client.v1.prices.list({"lookup_keys": [key]}).data[0]


def a_subscription(client: stripe.StripeClient, customer: str, **more: Any) -> stripe.Subscription:
    fields: Any = {"customer": customer, "items": [{"price": the_price(client).id}], **more}
    return client.v1.subscriptions.create(fields)


def a_clock(client: stripe.StripeClient, at: int = 1_800_000_000) -> str:
    return client.v1.test_helpers.test_clocks.create({"frozen_time": at}).id


def advance(client: stripe.StripeClient, clock: str, *, days: float) -> int:
    """Move a test clock on and wait until all that was due has happened; gives its new time."""
    target = client.v1.test_helpers.test_clocks.retrieve(clock).frozen_time + int(days * 86_400)
    client.v1.test_helpers.test_clocks.advance(clock, {"frozen_time": target})
    eventually(lambda: client.v1.test_helpers.test_clocks.retrieve(clock).status == "ready")
    return target


def item_of(subscription: stripe.Subscription) -> stripe.SubscriptionItem:
    return subscription["items"].data[0]


def latest_invoice(client: stripe.StripeClient, subscription: str) -> stripe.Invoice:
    invoice = client.v1.subscriptions.retrieve(subscription, {"expand": ["latest_invoice"]}).latest_invoice
    assert isinstance(invoice, stripe.Invoice)
    return invoice
