"""The invoices API, invoice items and invoice payments."""

from typing import cast

from devkit.stripe import invoice_lines, invoicing, lifecycle
from devkit.stripe.errors import ApiError, Json
from devkit.stripe.forms import merge_metadata
from devkit.stripe.invoicing import Draft
from devkit.stripe.rendering import LIST_PARAMS, list_of, page, search_page
from devkit.stripe.world import Call, Route, World, copied, inner

REASONS_NOT_OPEN = {
    "draft": "Invoice is not finalized.",
    "paid": "Invoice is already paid",
    "void": "Invoice is void.",
    "uncollectible": "Invoice is uncollectible.",
}


def retrieve_invoice(world: World, call: Call) -> Json:
    return world.need("invoice", call.ids[0])


def list_invoices(world: World, call: Call) -> Json:
    params = call.params
    params.only((*LIST_PARAMS, "collection_method", "customer", "due_date", "status", "subscription"))
    status = params.choice("status", ("draft", "open", "paid", "uncollectible", "void"))
    subscription = params.text("subscription")

    def keep(invoice: Json) -> bool:
        if status not in {None, invoice["status"]}:
            return False
        return subscription is None or subscription_name(invoice) == subscription

    return page(world, call, "invoice", owner=params.text("customer"), keep=keep)


def subscription_name(invoice: Json) -> str | None:
    """The id of the subscription an invoice belongs to."""
    details = inner(inner(invoice, "parent"), "subscription_details")
    return cast("str | None", details.get("subscription"))


def search_invoices(world: World, call: Call) -> Json:
    call.params.only(("query", "limit", "page"))
    return search_page(world, call, "invoice")


def create_invoice(world: World, call: Call) -> Json:
    """A one-off invoice of the items that wait for the customer."""
    params = call.params
    params.only(
        (
            "auto_advance",
            "collection_method",
            "currency",
            "customer",
            "days_until_due",
            "description",
            "metadata",
            "pending_invoice_items_behavior",
            "subscription",
        )
    )
    customer = world.need("customer", params.need("customer"), param="customer")
    behavior = params.choice("pending_invoice_items_behavior", ("exclude", "include"), "exclude")
    name = params.text("subscription")
    subscription = world.need("subscription", name, param="subscription") if name else None
    wants_items = behavior == "include" or subscription is not None
    now = world.now(customer["test_clock"])
    invoice = invoicing.new_invoice(
        world,
        Draft(
            customer=customer,
            reason="manual",
            period=(now, now),
            lines=invoice_lines.take_pending(world, customer["id"], name) if wants_items else [],
            currency=params.text("currency") or customer["currency"] or "usd",
            subscription=subscription,
            auto_advance=bool(params.flag("auto_advance")),
        ),
    )
    after: Json = copied(invoice) | {"description": params.text("description"), "metadata": merge_metadata({}, params)}
    after["collection_method"] = params.choice(
        "collection_method", ("charge_automatically", "send_invoice"), invoice["collection_method"]
    )
    after["_days_until_due"] = params.number("days_until_due")
    return invoicing.save(world, invoice, after, None)


def update_invoice(world: World, call: Call) -> Json:
    params = call.params
    params.only(("auto_advance", "description", "metadata", "default_payment_method"))
    before = world.need("invoice", call.ids[0])
    after: Json = copied(before) | {"metadata": merge_metadata(before["metadata"], params)}
    if "auto_advance" in params:
        after["auto_advance"] = bool(params.flag("auto_advance"))
        if before["status"] == "draft" and after["auto_advance"]:
            moment = world.now(before["test_clock"]) + world.settings.finalize_after_s
            after["automatically_finalizes_at"] = moment
    for name in ("description", "default_payment_method"):
        if name in params:
            after[name] = params.text(name)
    return invoicing.save(world, before, after)


def delete_invoice(world: World, call: Call) -> Json:
    body = world.need("invoice", call.ids[0])
    if body["status"] != "draft" or subscription_name(body) is not None:
        raise ApiError.invalid("You can only delete draft invoices that belong to no subscription.")
    stub: Json = {"id": body["id"], "object": "invoice", "deleted": True}
    world.store.mark_deleted(body["id"], stub)
    world.emit("invoice.deleted", body)
    return stub


def finalize_invoice(world: World, call: Call) -> Json:
    call.params.only(("auto_advance",))
    before = world.need("invoice", call.ids[0])
    if before["status"] != "draft":
        raise ApiError.invalid("This invoice is already finalized, you can't re-finalize a non-draft invoice.")
    after = invoicing.finalize(world, before)
    if after["status"] == "paid":
        lifecycle.settled(world, after)
    return after


def pay_invoice(world: World, call: Call) -> Json:
    """Collect now, also when the automatic attempts are used up; a decline leaves its traces and is a 402."""
    params = call.params
    params.only(("payment_method", "paid_out_of_band", "off_session", "forgive", "source"))
    before = world.need("invoice", call.ids[0])
    if before["status"] == "draft":
        before = invoicing.finalize(world, before)
    if before["status"] == "paid" and call.params.tree.get("forgive") is None:
        raise ApiError.invalid("Invoice is already paid", code="invoice_already_paid")
    if before["status"] not in {"open", "uncollectible"}:
        raise ApiError.invalid(REASONS_NOT_OPEN[before["status"]], code="invoice_not_editable")
    if params.flag("paid_out_of_band"):
        after = invoicing.mark_paid(world, before)
        lifecycle.settled(world, after)
        return after
    after, decline = lifecycle.collect(world, before, params.text("payment_method"))
    if decline == lifecycle.NO_METHOD:
        raise ApiError.invalid("There is no `default_payment_method` set on this Customer or Invoice.")
    if decline is not None:
        raise ApiError.declined(decline, keeps_effects=True)
    return after


def void_invoice(world: World, call: Call) -> Json:
    call.params.only(())
    before = world.need("invoice", call.ids[0])
    if before["status"] not in {"open", "uncollectible"}:
        raise ApiError.invalid(f"You can only void open or uncollectible invoices; this one is {before['status']}.")
    return invoicing.void(world, before)


def mark_uncollectible(world: World, call: Call) -> Json:
    call.params.only(())
    before = world.need("invoice", call.ids[0])
    if before["status"] != "open":
        raise ApiError.invalid(f"You can only mark open invoices as uncollectible; this one is {before['status']}.")
    return invoicing.void(world, before, "uncollectible")


def send_invoice(world: World, call: Call) -> Json:
    call.params.only(())
    before = world.need("invoice", call.ids[0])
    after = invoicing.finalize(world, before) if before["status"] == "draft" else before
    world.emit("invoice.sent", after)
    return after


def list_lines(world: World, call: Call) -> Json:
    invoice = world.need("invoice", call.ids[0])
    return cast("Json", invoice["lines"]) | {"url": call.path}


def retrieve_payment(world: World, call: Call) -> Json:
    return world.need("invoice_payment", call.ids[0])


def list_payments(world: World, call: Call) -> Json:
    params = call.params
    params.only((*LIST_PARAMS, "invoice", "payment", "status"))
    status, invoice = params.text("status"), params.text("invoice")
    payment = params.part("payment")
    payment.only(("type", "payment_intent", "payment_record"))
    intent = payment.text("payment_intent")

    def keep(body: Json) -> bool:
        return status in {None, body["status"]} and intent in {None, body["payment"].get("payment_intent")}

    return page(world, call, "invoice_payment", owner=invoice, keep=keep)


def invoice_payments(world: World, invoice: Json) -> Json:
    """The `payments` of an invoice, which exist only when expanded."""
    return list_of(invoicing.payments_of(world, invoice), f"/v1/invoice_payments?invoice={invoice['id']}")


def confirmation_secret(world: World, invoice: Json) -> Json | None:
    """What a page needs to pay the invoice; exists only when expanded, and only once something is due."""
    name = invoice.get("_intent")
    if name is None:
        return None
    return {"client_secret": world.need("payment_intent", name)["client_secret"], "type": "payment_intent"}


def create_item(world: World, call: Call) -> Json:
    params = call.params
    params.only(
        ("amount", "currency", "customer", "description", "metadata", "price", "pricing", "quantity", "subscription")
    )
    customer = world.need("customer", params.need("customer"), param="customer")
    name = params.part("pricing").text("price") or params.text("price")
    price = world.need("price", name, param="pricing[price]") if name else None
    amount = params.number("amount")
    if amount is None and price is not None:
        amount = invoice_lines.amount_of(price, params.number("quantity") or 1)
    if amount is None:
        raise ApiError.missing_param("amount")
    now = world.now(customer["test_clock"])
    return invoice_lines.new_invoice_item(
        world,
        customer=customer,
        amount=amount,
        currency=price["currency"] if price else params.need("currency"),
        description=params.text("description") or "One-off charge",
        period=(now, now),
        price=price,
        subscription=params.text("subscription"),
    )


def retrieve_item(world: World, call: Call) -> Json:
    return world.need("invoiceitem", call.ids[0])


def list_items(world: World, call: Call) -> Json:
    params = call.params
    params.only((*LIST_PARAMS, "customer", "invoice", "pending"))
    invoice, pending = params.text("invoice"), params.flag("pending")

    def keep(item: Json) -> bool:
        return invoice in {None, item["invoice"]} and (pending is None or pending == (item["invoice"] is None))

    return page(world, call, "invoiceitem", owner=params.text("customer"), keep=keep)


ROUTES: list[Route] = [
    ("POST", "/v1/invoices", create_invoice),
    ("GET", "/v1/invoices", list_invoices),
    ("GET", "/v1/invoices/search", search_invoices),
    ("GET", "/v1/invoices/{id}", retrieve_invoice),
    ("POST", "/v1/invoices/{id}", update_invoice),
    ("DELETE", "/v1/invoices/{id}", delete_invoice),
    ("POST", "/v1/invoices/{id}/finalize", finalize_invoice),
    ("POST", "/v1/invoices/{id}/pay", pay_invoice),
    ("POST", "/v1/invoices/{id}/void", void_invoice),
    ("POST", "/v1/invoices/{id}/mark_uncollectible", mark_uncollectible),
    ("POST", "/v1/invoices/{id}/send", send_invoice),
    ("GET", "/v1/invoices/{id}/lines", list_lines),
    ("GET", "/v1/invoice_payments", list_payments),
    ("GET", "/v1/invoice_payments/{id}", retrieve_payment),
    ("POST", "/v1/invoiceitems", create_item),
    ("GET", "/v1/invoiceitems", list_items),
    ("GET", "/v1/invoiceitems/{id}", retrieve_item),
]
