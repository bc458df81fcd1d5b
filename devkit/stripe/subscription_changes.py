"""Changing what a subscription contains: items, prices, quantities, and the prorations that follow."""

from collections.abc import Callable
from decimal import Decimal
from typing import cast

from devkit.stripe import invoice_lines, lifecycle
from devkit.stripe.errors import ApiError, Json
from devkit.stripe.forms import Params, merge_metadata
from devkit.stripe.lifecycle import Span, clock_of, items_of
from devkit.stripe.periods import next_boundary
from devkit.stripe.world import World

ITEM_KNOWN = ("id", "price", "quantity", "metadata", "deleted", "clear_usage")
NewItem = Callable[[World, Params, str, int], Json]


def need_price(world: World, params: Params) -> Json:
    name = params.need("price")
    price = world.need("price", name, param=params.name("price"))
    if not price["active"] and not price.get("_is_inline"):
        raise ApiError.invalid("The price specified is inactive. This field only accepts active prices.", param="price")
    if price["recurring"] is None:
        raise ApiError.invalid(
            f"The price specified is set to `type=one_time` but this field only accepts prices with "
            f"`type=recurring` ({name}).",
            param=params.name("price"),
        )
    return price


def change_items(world: World, before: Json, after: Json, params: Params, *, new_item: NewItem) -> None:
    """Apply `items` and `billing_cycle_anchor=now` to `after`, prorate, store, and bill where that is due now."""
    behaviour = params.choice(
        "proration_behavior", ("always_invoice", "create_prorations", "none"), "create_prorations"
    )
    span = lifecycle.period_of(before)
    now = world.now(clock_of(before))
    after["items"]["data"] = _changed_items(world, before, params, new_item)
    if not items_of(after):
        raise ApiError.invalid("A subscription must have at least one active plan.", param="items")
    lifecycle.set_period(after, span)
    is_new_cycle = params.text("billing_cycle_anchor") == "now" or _cadence(before) != _cadence(after)
    is_free_of_charge = before["status"] in {"trialing", "incomplete", "paused"}
    if is_free_of_charge:
        lifecycle.save(world, before, after)
        return
    if behaviour != "none":
        _prorate(world, before, after, is_new_cycle=is_new_cycle)
    if not is_new_cycle and behaviour != "always_invoice":
        lifecycle.save(world, before, after)
        return
    ahead = None
    if is_new_cycle:
        ahead = Span(start=now, end=next_boundary(now, items_of(after)[0]["price"], now))
        after["billing_cycle_anchor"] = now
        lifecycle.set_period(after, ahead)
    billed, invoice = lifecycle.bill(world, after, "subscription_update", ahead=ahead)
    lifecycle.save(world, before, billed)
    _, decline = lifecycle.settle_now(world, invoice)
    if decline is not None and params.text("payment_behavior") == "error_if_incomplete":
        raise ApiError.declined(decline, keeps_effects=False)


def _cadence(subscription: Json) -> tuple[str, int]:
    recurring = cast("Json", items_of(subscription)[0]["price"]["recurring"])
    return recurring["interval"], recurring["interval_count"]


def _changed_items(world: World, before: Json, params: Params, new_item: NewItem) -> list[Json]:
    items = {cast("str", item["id"]): dict(item) for item in items_of(before)}
    for part in params.parts("items"):
        part.only(ITEM_KNOWN)
        name = part.text("id")
        if name is None:
            added = new_item(world, part, before["id"], world.now(clock_of(before)))
            items[added["id"]] = added
        elif name not in items:
            raise ApiError.not_found("subscription item", name, param=part.name("id"), status=400)
        elif part.flag("deleted"):
            del items[name]
        else:
            _change_item(world, items[name], part)
    return list(items.values())


def _change_item(world: World, item: Json, part: Params) -> None:
    if "price" in part:
        item["price"] = need_price(world, part)
    if "metadata" in part:
        item["metadata"] = merge_metadata(item["metadata"], part)
    is_metered = item["price"]["recurring"]["usage_type"] == "metered"
    quantity = part.number("quantity")
    if is_metered:
        item.pop("quantity", None)
    elif quantity is not None or "quantity" not in item:
        item["quantity"] = 1 if quantity is None else quantity


def _prorate(world: World, before: Json, after: Json, *, is_new_cycle: bool) -> None:
    """Credit the unused part of what was, charge the same part of what is (a new cycle charges a whole period)."""
    now = world.now(clock_of(before))
    span = lifecycle.period_of(before)
    part = Decimal(max(span.end - now, 0)) / Decimal(span.end - span.start)
    old = {item["id"]: item for item in items_of(before)}
    new = {item["id"]: item for item in items_of(after)}
    for name in [*old, *(name for name in new if name not in old)]:
        was, becomes = old.get(name), new.get(name)
        if not is_new_cycle and was is not None and becomes is not None and _cost(was) == _cost(becomes):
            continue
        if was is not None:
            _wait(world, before, was, -part * _cost(was), Span(start=now, end=span.end))
        if becomes is not None and not is_new_cycle:
            _wait(world, before, becomes, part * _cost(becomes), Span(start=now, end=span.end))


def _cost(item: Json) -> Decimal:
    price = cast("Json", item["price"])
    return Decimal(invoice_lines.amount_of(price, item.get("quantity") or 0))


def _wait(world: World, subscription: Json, item: Json, amount: Decimal, span: Span) -> None:
    rounded = int(amount.to_integral_value())
    if rounded == 0:
        return
    product = world.store.find(item["price"]["product"]) or {}
    word = "Unused time on" if rounded < 0 else "Remaining time on"
    invoice_lines.new_invoice_item(
        world,
        customer=world.need("customer", subscription["customer"]),
        amount=rounded,
        currency=item["price"]["currency"],
        description=f"{word} {product.get('name', item['price']['product'])}",
        period=(span.start, span.end),
        price=item["price"],
        subscription=subscription["id"],
        proration=True,
    )
