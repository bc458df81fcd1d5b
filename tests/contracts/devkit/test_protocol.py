"""What holds for every call: keys, errors, idempotency, pages, expansion, versions and faults."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import stripe
from emulation import Emulator, a_customer, a_subscription

AUTH = {"Authorization": "Bearer sk_test_contract"}


def post(emulator: Emulator, path: str, fields: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{emulator.url}{path}", data=fields, headers=AUTH | headers, timeout=10)


def param_of(error: stripe.InvalidRequestError) -> str:
    return str(error.param)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - the SDK leaves it untyped


def test_only_test_keys_are_let_in(emulator: Emulator) -> None:
    for key in ("sk_live_real", "pk_test_public", "sk_test_"):
        with pytest.raises(stripe.AuthenticationError) as refused:
            emulator.client(key).v1.customers.list()
        assert refused.value.http_status == 401
    assert httpx.get(f"{emulator.url}/v1/customers").status_code == 401


def test_answers_carry_request_id_and_version(emulator: Emulator) -> None:
    answer = httpx.get(f"{emulator.url}/v1/customers", headers=AUTH | {"Stripe-Version": "2026-10-28.endive"})
    assert answer.headers["request-id"].startswith("req_")
    assert answer.headers["stripe-version"] == "2026-10-28.endive"
    odd = httpx.get(f"{emulator.url}/v1/customers", headers=AUTH | {"Stripe-Version": "tomorrow"})
    assert (odd.status_code, odd.json()["error"]["type"]) == (400, "invalid_request_error")


def test_errors_say_what_is_wrong(client: stripe.StripeClient, emulator: Emulator) -> None:
    with pytest.raises(stripe.InvalidRequestError) as missing:
        client.v1.subscriptions.retrieve("sub_none")
    assert (missing.value.http_status, missing.value.code, param_of(missing.value)) == (
        404,
        "resource_missing",
        "subscription",
    )
    with pytest.raises(stripe.InvalidRequestError) as unnamed:
        client.v1.subscriptions.create({"customer": "cus_none", "items": []})
    assert (unnamed.value.http_status, unnamed.value.code, param_of(unnamed.value)) == (
        400,
        "resource_missing",
        "customer",
    )
    body = post(emulator, "/v1/customers", {"emial": "a@b.example"}).json()["error"]
    assert (body["code"], body["param"]) == ("parameter_unknown", "emial")
    body = post(emulator, "/v1/prices", {"currency": "usd", "unit_amount": "ten", "product_data[name]": "x"}).json()[
        "error"
    ]
    assert body["code"] == "parameter_invalid_integer"
    assert post(emulator, "/v1/unknown", {}).status_code == 400


def test_the_same_key_gives_the_same_answer(emulator: Emulator) -> None:
    first = post(emulator, "/v1/customers", {"email": "k@b.example"}, **{"Idempotency-Key": "key-1"})
    again = post(emulator, "/v1/customers", {"email": "k@b.example"}, **{"Idempotency-Key": "key-1"})
    assert first.content == again.content
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    other = post(emulator, "/v1/customers", {"email": "other@b.example"}, **{"Idempotency-Key": "key-1"})
    assert (other.status_code, other.json()["error"]["type"]) == (400, "idempotency_error")


def test_the_sdk_names_a_reused_key(client: stripe.StripeClient) -> None:
    client.v1.customers.create({"name": "one"}, {"idempotency_key": "key-2"})
    with pytest.raises(stripe.IdempotencyError):
        client.v1.customers.create({"name": "two"}, {"idempotency_key": "key-2"})


def test_a_decline_is_remembered_but_a_validation_error_is_not(client: stripe.StripeClient, emulator: Emulator) -> None:
    customer = a_customer(client, card="pm_card_chargeCustomerFail")
    invoice = a_subscription(client, customer.id).latest_invoice
    for _ in range(2):
        answer = post(emulator, f"/v1/invoices/{invoice}/pay", {}, **{"Idempotency-Key": "key-3"})
        assert answer.status_code == 402
    assert client.v1.invoices.retrieve(str(invoice)).attempt_count == 2, "one on creation, one for both calls"
    key = {"Idempotency-Key": "key-4"}
    assert post(emulator, "/v1/prices", {"currency": "usd"}, **key).status_code == 400
    assert post(emulator, "/v1/customers", {}, **key).status_code == 200


def test_a_second_call_under_a_key_in_flight_conflicts(emulator: Emulator) -> None:
    emulator.control("POST", "/faults", {"kind": "delay", "path": "/v1/customers", "method": "POST", "delay_s": 1})
    with ThreadPoolExecutor() as pool:
        key = {"Idempotency-Key": "key-5"}
        calls = [pool.submit(post, emulator, "/v1/customers", {"name": "x"}, **key) for _ in range(2)]
        statuses = sorted(call.result().status_code for call in calls)
    assert statuses == [200, 409]
    assert post(emulator, "/v1/customers", {"name": "x"}, **key).headers["idempotent-replayed"] == "true"


def test_lists_are_paged_to_the_end(client: stripe.StripeClient) -> None:
    made = [client.v1.customers.create({"email": "page@b.example", "name": str(number)}).id for number in range(25)]
    first = client.v1.customers.list({"email": "page@b.example", "limit": 10})
    assert (len(first.data), first.has_more, first.url) == (10, True, "/v1/customers")
    assert [one.id for one in first.auto_paging_iter()] == made[::-1]
    before = client.v1.customers.list({"email": "page@b.example", "limit": 10, "ending_before": first.data[-1].id})
    assert [one.id for one in before.data] == made[:15:-1]
    since = client.v1.customers.retrieve(made[0]).created
    assert not client.v1.customers.list({"created": {"lt": since - 60}, "email": "page@b.example"}).data
    assert client.v1.customers.list({"created": {"gte": since}, "email": "page@b.example"}).data
    for limit in (0, 101):
        with pytest.raises(stripe.InvalidRequestError):
            client.v1.customers.list({"limit": limit})
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.customers.list({"starting_after": "cus_none"})


def test_expansion_reaches_through_lists_and_refuses_nonsense(client: stripe.StripeClient) -> None:
    customer = a_customer(client)
    a_subscription(client, customer.id)
    (found,) = client.v1.subscriptions.list(
        {
            "customer": customer.id,
            "expand": ["data.customer", "data.items.data.price.product", "data.latest_invoice.payments"],
        }
    ).data
    assert isinstance(found.customer, stripe.Customer)
    assert isinstance(found["items"].data[0].price.product, stripe.Product)
    assert isinstance(found.latest_invoice, stripe.Invoice)
    assert found.latest_invoice.payments is not None
    assert found.latest_invoice.payments.data[0].status == "paid"
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        client.v1.customers.retrieve(customer.id, {"expand": ["favourite_colour"]})


async def test_the_async_client_works_too(emulator: Emulator) -> None:
    client = emulator.client()
    made = await client.v1.customers.create_async({"email": "async@b.example"})
    page = await client.v1.customers.list_async({"email": "async@b.example"})
    assert [one.id async for one in page.auto_paging_iter()] == [made.id]


def test_a_server_error_is_retried_by_the_sdk(emulator: Emulator) -> None:
    emulator.control("POST", "/faults", {"status": 503, "times": 2, "method": "POST", "path": "/v1/customers"})
    made = emulator.client(retries=2).v1.customers.create({"name": "patient"})
    calls = [
        call
        for call in emulator.control("GET", "/calls", path="/v1/customers")["calls"]
        if call["params"].get("name") == "patient"
    ]
    assert [call["fault"] for call in calls] == ["status", "status", None]
    assert len({call["idempotency_key"] for call in calls}) == 1
    assert calls[-1]["id"] == made.id


def test_an_applied_call_whose_answer_is_lost_happens_once(emulator: Emulator) -> None:
    emulator.control("POST", "/faults", {"kind": "applied_then_cut", "method": "POST", "path": "/v1/customers"})
    made = emulator.client(retries=1).v1.customers.create({"email": "cut@b.example"})
    assert [one.id for one in emulator.client().v1.customers.list({"email": "cut@b.example"}).data] == [made.id]


def test_a_cut_before_the_work_leaves_nothing(emulator: Emulator) -> None:
    emulator.control("POST", "/faults", {"kind": "cut", "method": "POST", "path": "/v1/customers"})
    with pytest.raises(stripe.APIConnectionError):
        emulator.client().v1.customers.create({"email": "gone@b.example"})
    assert not emulator.client().v1.customers.list({"email": "gone@b.example"}).data


def test_faults_choose_their_call_and_count_down(emulator: Emulator) -> None:
    fault = {"status": 429, "method": "GET", "path": "/v1/prices*", "skip": 1, "should_retry": True, "retry_after_s": 2}
    emulator.control("POST", "/faults", fault)
    answers = [httpx.get(f"{emulator.url}/v1/prices", headers=AUTH) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert (answers[1].headers["retry-after"], answers[1].headers["stripe-should-retry"]) == ("2", "true")
    assert answers[1].json()["error"]["type"] == "rate_limit_error"
    assert emulator.control("GET", "/faults")["faults"] == []


def test_a_hanging_call_ends_by_the_callers_timeout(emulator: Emulator) -> None:
    emulator.control("POST", "/faults", {"kind": "hang", "path": "/v1/events", "delay_s": 2})
    started = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{emulator.url}/v1/events", headers=AUTH, timeout=0.2)
    assert time.monotonic() - started < 1.5


def test_it_is_small(emulator: Emulator) -> None:
    assert emulator.resident_mb() < 100
