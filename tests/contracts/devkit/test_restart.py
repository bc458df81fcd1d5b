"""What a killed emulator still knows. It is killed once, in the middle of everything, and then asked."""

from collections.abc import Generator
from dataclasses import dataclass

import httpx
import pytest
import stripe
from emulation import SECRET, Emulator, Receiver, a_clock, a_customer, a_subscription, eventually, item_of, the_price

YEARS_S = 3_000 * 86_400


@dataclass(frozen=True)
class Past:
    """What was done before the kill."""

    emulator: Emulator
    receiver: Receiver
    client: stripe.StripeClient
    made: str
    subscription: str
    prices: list[str]
    offset_s: float
    clock: str
    clocked: str


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Generator[Past]:
    emulator = Emulator(tmp_path_factory.mktemp("restart"))
    with Receiver(statuses=[500] * 10_000) as receiver:
        emulator.command += ["--webhook-url", receiver.url, "--webhook-secret", SECRET]
        client = emulator.run().client()
        made = client.v1.customers.create({"email": "kept@b.example"}, {"idempotency_key": "before-the-kill"}).id
        subscription = a_subscription(client, a_customer(client).id).id
        emulator.control("POST", "/clock/advance", {"days": 5})
        offset_s = emulator.control("GET", "/clock")["offset_s"]
        prices = [price.id for price in client.v1.prices.list().data]
        _lose_an_answer(emulator)
        clock = a_clock(client)
        clocked = a_subscription(client, a_customer(client, clock=clock).id).id
        eventually(lambda: receiver.got)
        client.v1.test_helpers.test_clocks.advance(clock, {"frozen_time": 1_800_000_000 + YEARS_S})
        emulator.kill()
        receiver.statuses, receiver.got = [], []
        emulator.run()
        yield Past(emulator, receiver, client, made, subscription, prices, offset_s, clock, clocked)
        emulator.kill()


def _lose_an_answer(emulator: Emulator) -> None:
    """Have a call applied whose answer never comes."""
    fault = {"kind": "applied_then_hang", "method": "POST", "path": "/v1/customers", "delay_s": 60}
    emulator.control("POST", "/faults", fault)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{emulator.url}/v1/customers",
            data={"email": "lost@b.example"},
            headers={"Authorization": "Bearer sk_test_x", "Idempotency-Key": "lost-1"},
            timeout=0.5,
        )


def test_objects_clock_and_seeds_are_as_they_were(past: Past) -> None:
    assert past.client.v1.subscriptions.retrieve(past.subscription).status == "active"
    assert past.emulator.control("GET", "/clock")["offset_s"] == past.offset_s
    assert [price.id for price in past.client.v1.prices.list().data] == past.prices


def test_idempotency_keys_are_remembered(past: Past) -> None:
    again = past.client.v1.customers.create({"email": "kept@b.example"}, {"idempotency_key": "before-the-kill"})
    assert again.id == past.made


def test_an_answer_lost_with_the_process_is_found_by_its_key(past: Past) -> None:
    found = past.client.v1.customers.create({"email": "lost@b.example"}, {"idempotency_key": "lost-1"})
    assert [one.id for one in past.client.v1.customers.list({"email": "lost@b.example"}).data] == [found.id]


def test_pending_deliveries_are_made(past: Past) -> None:
    # It may stand behind what the advance makes meanwhile.
    eventually(lambda: past.made in [event.data.object["id"] for event in past.receiver.events()], within_s=30)


def test_an_advance_cut_short_goes_on_and_bills_each_period_once(past: Past) -> None:
    clocks = past.client.v1.test_helpers.test_clocks
    eventually(lambda: clocks.retrieve(past.clock).status == "ready", within_s=30)
    assert clocks.retrieve(past.clock).frozen_time == 1_800_000_000 + YEARS_S
    subscription = past.client.v1.subscriptions.retrieve(past.clocked)
    assert item_of(subscription).current_period_end > 1_800_000_000 + YEARS_S
    invoices = past.client.v1.invoices.list({"subscription": past.clocked, "limit": 100}).auto_paging_iter()
    starts = [invoice.lines.data[0].period.start for invoice in invoices]
    assert len(starts) == len(set(starts)) == 99


def test_a_reset_forgets_all_but_the_command_line(past: Past) -> None:
    past.emulator.control("POST", "/reset")
    assert not past.client.v1.customers.list().data
    assert the_price(past.client).unit_amount == 2900
    past.receiver.got.clear()
    past.client.v1.customers.create({})
    eventually(lambda: "customer.created" in past.receiver.types())
