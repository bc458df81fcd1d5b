"""What an invoice is made of: lines for subscription items, and invoice items that wait for their invoice."""

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import cast

from devkit.stripe.errors import Json
from devkit.stripe.world import World, inner


def amount_of(price: Json, quantity: int | Decimal) -> int:
    """Minor units, a half rounded up."""
    exact = Decimal(cast("str", price["unit_amount_decimal"])) * quantity
    return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def subscription_line(
    world: World, item: Json, *, subscription: str, period: tuple[int, int], quantity: int | Decimal
) -> Json:
    """A line for one item of a subscription over a period."""
    price = cast("Json", item["price"])
    product = world.store.find(price["product"]) or {}
    amount = amount_of(price, quantity)
    return {
        **_line_base(world, amount=amount, currency=price["currency"], period=period),
        "description": f"{quantity} x {product.get('name', price['product'])}",
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": False,
                "proration_details": {"credited_items": None},
                "subscription": subscription,
                "subscription_item": item["id"],
            },
            "type": "subscription_item_details",
        },
        "pricing": _pricing(price),
        "quantity": int(quantity),
        "quantity_decimal": format(Decimal(quantity), "f"),
        "subscription": subscription,
    }


def item_line(world: World, invoice_item: Json) -> Json:
    """A line for a pending invoice item, such as a proration."""
    period = cast("Json", invoice_item["period"])
    details = inner(inner(invoice_item, "parent"), "subscription_details")
    return {
        **_line_base(
            world,
            amount=invoice_item["amount"],
            currency=invoice_item["currency"],
            period=(period["start"], period["end"]),
        ),
        "description": invoice_item["description"],
        "parent": {
            "invoice_item_details": {
                "invoice_item": invoice_item["id"],
                "proration": invoice_item["proration"],
                "proration_details": {"credited_items": None},
                "subscription": details.get("subscription"),
            },
            "subscription_item_details": None,
            "type": "invoice_item_details",
        },
        "pricing": invoice_item["pricing"],
        "quantity": invoice_item["quantity"],
        "quantity_decimal": str(invoice_item["quantity"]),
        "subscription": details.get("subscription"),
    }


def _line_base(world: World, *, amount: int, currency: str, period: tuple[int, int]) -> Json:
    return {
        "id": world.new_id("il"),
        "object": "line_item",
        "amount": amount,
        "currency": currency,
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": {},
        "period": {"start": period[0], "end": period[1]},
        "pretax_credit_amounts": [],
        "subtotal": amount,
        "taxes": [],
    }


def _pricing(price: Json) -> Json:
    return {
        "price_details": {"price": price["id"], "product": price["product"]},
        "type": "price_details",
        "unit_amount_decimal": price["unit_amount_decimal"],
    }


def new_invoice_item(
    world: World,
    *,
    customer: Json,
    amount: int,
    currency: str,
    description: str,
    period: tuple[int, int],
    price: Json | None = None,
    subscription: str | None = None,
    proration: bool = False,
) -> Json:
    """A charge or credit that waits for the customer's (or the subscription's) next invoice."""
    body: Json = {
        "id": world.new_id("ii"),
        "object": "invoiceitem",
        "_subscription": subscription,
        "amount": amount,
        "created": world.now(customer["test_clock"]),
        "currency": currency,
        "customer": customer["id"],
        "customer_account": None,
        "date": world.now(customer["test_clock"]),
        "description": description,
        "discountable": not proration,
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": {},
        "net_amount": amount,
        "parent": None
        if subscription is None
        else {"subscription_details": {"subscription": subscription}, "type": "subscription_details"},
        "period": {"start": period[0], "end": period[1]},
        "pricing": None if price is None else _pricing(price),
        "proration": proration,
        "quantity": 1,
        "quantity_decimal": "1",
        "tax_rates": [],
        "test_clock": customer["test_clock"],
    }
    return world.add(body, "invoiceitem.created")


def take_pending(world: World, customer: str, subscription: str | None) -> list[Json]:
    """The lines of the items that wait for this invoice; the caller names the invoice on them with `claim`."""
    return [
        item_line(world, item)
        for item in world.store.oldest_first("invoiceitem", owner=customer)
        if item["invoice"] is None and item["_subscription"] in {None, subscription}
    ]


def claim(world: World, lines: Sequence[Json]) -> None:
    """Note on the invoice items among the lines that they have found their invoice."""
    for line in lines:
        details = inner(line["parent"], "invoice_item_details")
        name = details.get("invoice_item")
        item = world.store.find(name) if name else None
        if item is not None:
            world.store.put(item | {"invoice": line["invoice"]})
