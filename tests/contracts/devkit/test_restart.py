"""What a killed emulator still knows."""

import httpx
import stripe
from emulation import SECRET, Emulator, Receiver, a_customer, a_subscription, eventually, item_of, the_price


def test_nothing_answered_is_lost_by_a_kill(own_emulator: Emulator) -> None:
    client = own_emulator.run().client()
    made = client.v1.customers.create({"email": "kept@b.example"}, {"idempotency_key": "before-the-kill"})
    subscription = a_subscription(client, a_customer(client).id)
    own_emulator.control("POST", "/clock/advance", {"days": 5})
    moved = own_emulator.control("GET", "/clock")["offset_s"]
    prices = [price.id for price in client.v1.prices.list().data]
    own_emulator.kill()

    own_emulator.run()
    again = client.v1.customers.create({"email": "kept@b.example"}, {"idempotency_key": "before-the-kill"})
    assert again.id == made.id
    assert client.v1.subscriptions.retrieve(subscription.id).status == "active"
    assert own_emulator.control("GET", "/clock")["offset_s"] == moved
    assert [price.id for price in client.v1.prices.list().data] == prices, "seeding is idempotent"


def test_an_answer_lost_with_the_process_is_found_by_its_key(own_emulator: Emulator) -> None:
    client = own_emulator.run().client()
    own_emulator.control("POST", "/faults", {"kind": "applied_then_hang", "path": "/v1/customers", "delay_s": 30})
    try:
        httpx.post(
            f"{own_emulator.url}/v1/customers",
            data={"email": "lost@b.example"},
            headers={"Authorization": "Bearer sk_test_x", "Idempotency-Key": "lost-1"},
            timeout=0.5,
        )
        raise AssertionError("the call was to hang")
    except httpx.ReadTimeout:
        own_emulator.kill()
    own_emulator.run()
    made = client.v1.customers.create({"email": "lost@b.example"}, {"idempotency_key": "lost-1"})
    assert [one.id for one in client.v1.customers.list({"email": "lost@b.example"}).data] == [made.id]


def test_pending_deliveries_survive_and_a_reset_forgets(own_emulator: Emulator, receiver: Receiver) -> None:
    own_emulator.command += ["--webhook-url", receiver.url, "--webhook-secret", SECRET]
    receiver.statuses = [500] * 1000
    client = own_emulator.run().client()
    customer = client.v1.customers.create({})
    eventually(lambda: receiver.got)
    own_emulator.kill()
    receiver.statuses, receiver.got = [], []

    own_emulator.run()
    eventually(lambda: customer.id in [event.data.object["id"] for event in receiver.events()])
    eventually(lambda: own_emulator.control("GET", "/deliveries")["counts"]["pending"] == 0)
    own_emulator.control("POST", "/reset")
    assert not client.v1.customers.list().data
    assert the_price(client).unit_amount == 2900
    receiver.got.clear()
    client.v1.customers.create({})
    eventually(lambda: "customer.created" in receiver.types())


def test_an_advance_cut_short_by_a_kill_goes_on(own_emulator: Emulator) -> None:
    client = own_emulator.run().client()
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": 1_800_000_000}).id
    subscription = a_subscription(client, a_customer(client, clock=clock).id)
    target = 1_800_000_000 + 3_000 * 86_400
    client.v1.test_helpers.test_clocks.advance(clock, {"frozen_time": target})
    own_emulator.kill()
    own_emulator.run()
    ready = eventually(lambda: _ready(client, clock))
    assert ready.frozen_time == target
    assert item_of(client.v1.subscriptions.retrieve(subscription.id)).current_period_end > target
    invoices = [one.period_start for one in client.v1.invoices.list({"limit": 100}).auto_paging_iter()]
    assert len(invoices) == len(set(invoices)) + 1, "each period is billed once (the first also on creation)"


def _ready(client: stripe.StripeClient, clock: str) -> stripe.test_helpers.TestClock | None:
    found = client.v1.test_helpers.test_clocks.retrieve(clock)
    return found if found.status == "ready" else None


def test_it_is_small(own_emulator: Emulator) -> None:
    own_emulator.run().client().v1.customers.create({})
    assert own_emulator.resident_mb() < 100
