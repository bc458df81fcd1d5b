"""Products and prices: what can be bought."""

from decimal import Decimal, InvalidOperation
from typing import cast

from devkit.stripe.errors import ApiError, Json
from devkit.stripe.forms import Params, merge_metadata
from devkit.stripe.rendering import LIST_PARAMS, page, search_page
from devkit.stripe.world import Call, Route, World, copied

PRODUCT_FIELDS = ("name", "description", "statement_descriptor", "tax_code", "unit_label", "url", "default_price")
PRODUCT_KNOWN = (
    *PRODUCT_FIELDS,
    "active",
    "metadata",
    "images",
    "marketing_features",
    "shippable",
    "package_dimensions",
)
INTERVALS = ("day", "week", "month", "year")
PRICE_KNOWN = (
    "active",
    "billing_scheme",
    "currency",
    "lookup_key",
    "metadata",
    "nickname",
    "product",
    "product_data",
    "recurring",
    "tax_behavior",
    "transfer_lookup_key",
    "unit_amount",
    "unit_amount_decimal",
)


def new_product(world: World, fields: Json) -> Json:
    now = world.now()
    body: Json = {
        "id": world.new_id("prod"),
        "object": "product",
        "active": True,
        "created": now,
        "default_price": None,
        "description": None,
        "images": [],
        "livemode": False,
        "marketing_features": [],
        "metadata": {},
        "name": "",
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": None,
        "tax_code": None,
        "type": "service",
        "unit_label": None,
        "updated": now,
        "url": None,
    }
    return world.add(body | fields, "product.created")


def _product_fields(params: Params, current: Json) -> Json:
    fields: Json = {name: params.text(name) for name in PRODUCT_FIELDS if name in params}
    if "active" in params:
        fields["active"] = params.flag("active")
    for name in ("images", "marketing_features"):
        if name in params:
            fields[name] = params.plain(name) or []
    fields["metadata"] = merge_metadata(cast("dict[str, str]", current.get("metadata", {})), params)
    return fields


def create_product(world: World, call: Call) -> Json:
    params = call.params
    params.only((*PRODUCT_KNOWN, "id", "default_price_data", "type"))
    params.need("name")
    own_id = params.text("id")
    if own_id is not None and world.store.find(own_id) is not None:
        raise ApiError.invalid("Product already exists.", param="id", code="resource_already_exists")
    fields = _product_fields(params, {}) | ({"id": own_id} if own_id else {})
    product = new_product(world, fields)
    if "default_price_data" in params:
        price = price_from(world, params.part("default_price_data"), product["id"])
        after: Json = copied(product) | {"default_price": price["id"]}
        product = world.change(product, after, "product.updated")
    return product


def update_product(world: World, call: Call) -> Json:
    call.params.only(PRODUCT_KNOWN)
    before = world.need("product", call.ids[0])
    after: Json = copied(before) | _product_fields(call.params, before) | {"updated": world.now()}
    return world.change(before, after, "product.updated")


def retrieve_product(world: World, call: Call) -> Json:
    return world.need("product", call.ids[0])


def list_products(world: World, call: Call) -> Json:
    call.params.only((*LIST_PARAMS, "active", "ids", "shippable", "url"))
    active, ids = call.params.flag("active"), set(call.params.texts("ids"))
    return page(
        world,
        call,
        "product",
        keep=lambda p: (active is None or p["active"] == active) and (not ids or p["id"] in ids),
    )


def search_products(world: World, call: Call) -> Json:
    call.params.only(("query", "limit", "page"))
    return search_page(world, call, "product")


def delete_product(world: World, call: Call) -> Json:
    body = world.need("product", call.ids[0])
    if any(price["product"] == body["id"] for price in world.store.newest_first("price")):
        raise ApiError.invalid("This product cannot be deleted because it has one or more user-created prices.")
    stub: Json = {"id": body["id"], "object": "product", "deleted": True}
    world.store.mark_deleted(body["id"], stub)
    world.emit("product.deleted", body)
    return stub


def _recurring(world: World, params: Params) -> Json | None:
    if "recurring" not in params:
        return None
    part = params.part("recurring")
    part.only(("interval", "interval_count", "usage_type", "meter", "trial_period_days"))
    part.need("interval")
    meter = part.text("meter")
    usage = part.choice("usage_type", ("licensed", "metered"), "licensed")
    if meter is not None:
        world.need("billing.meter", meter, param=part.name("meter"))
    if (usage == "metered") != (meter is not None):
        raise ApiError.invalid(
            "A metered price needs a meter, and only a metered price has one.", param=part.name("meter")
        )
    return {
        "interval": part.choice("interval", INTERVALS),
        "interval_count": part.number("interval_count") or 1,
        "meter": meter,
        "trial_period_days": part.number("trial_period_days"),
        "usage_type": usage,
    }


def unit_amounts(params: Params) -> tuple[int | None, str]:
    """`unit_amount` in minor units (None when it has a fraction of one) and the exact amount as text."""
    exact = params.text("unit_amount_decimal")
    whole = params.number("unit_amount")
    if (exact is None) == (whole is None):
        raise ApiError.invalid(
            "Pass exactly one of unit_amount or unit_amount_decimal.", param=params.name("unit_amount")
        )
    try:
        amount = Decimal(exact) if exact is not None else Decimal(whole or 0)
    except InvalidOperation as error:
        raise ApiError.invalid(f"Invalid decimal: {exact}", param=params.name("unit_amount_decimal")) from error
    if amount < 0:
        raise ApiError.invalid("Amounts must not be negative.", param=params.name("unit_amount"))
    text = format(amount.normalize(), "f")
    return (int(amount) if amount == amount.to_integral_value() else None), text


def price_from(world: World, params: Params, product: str, *, active: bool = True) -> Json:
    """Store and announce the price that a call, or the `price_data` inside one, describes."""
    recurring = _recurring(world, params)
    whole, exact = unit_amounts(params)
    lookup_key = params.text("lookup_key")
    if lookup_key is not None:
        _claim_lookup_key(world, lookup_key, is_transfer=bool(params.flag("transfer_lookup_key")))
    body: Json = {
        "id": world.new_id("price"),
        "object": "price",
        "active": active,
        "billing_scheme": "per_unit",
        "created": world.now(),
        "currency": params.need("currency").lower(),
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": lookup_key,
        "metadata": merge_metadata({}, params),
        "nickname": params.text("nickname"),
        "product": product,
        "recurring": recurring,
        "tax_behavior": params.choice("tax_behavior", ("exclusive", "inclusive", "unspecified"), "unspecified"),
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "one_time" if recurring is None else "recurring",
        "unit_amount": whole,
        "unit_amount_decimal": exact,
    }
    return world.add(body, "price.created")


def _claim_lookup_key(world: World, lookup_key: str, *, is_transfer: bool) -> None:
    holder = next((p for p in world.store.newest_first("price") if p["lookup_key"] == lookup_key and p["active"]), None)
    if holder is None:
        return
    if not is_transfer:
        raise ApiError.invalid(
            f"A price (`{holder['id']}`) already uses that lookup key.",
            param="lookup_key",
            code="resource_already_exists",
        )
    world.change(holder, copied(holder) | {"lookup_key": None}, "price.updated")


def create_price(world: World, call: Call) -> Json:
    params = call.params
    params.only(PRICE_KNOWN)
    params.choice("billing_scheme", ("per_unit",))
    product = params.text("product")
    if product is not None:
        world.need("product", product, param="product")
    else:
        data = params.part("product_data")
        product = str(new_product(world, {"name": data.need("name"), "metadata": merge_metadata({}, data)})["id"])
    return price_from(world, params, product, active=params.flag("active") is not False)


def update_price(world: World, call: Call) -> Json:
    params = call.params
    params.only(("active", "lookup_key", "metadata", "nickname", "tax_behavior", "transfer_lookup_key"))
    before = world.need("price", call.ids[0])
    after: Json = copied(before) | {"metadata": merge_metadata(before["metadata"], params)}
    if "active" in params:
        after["active"] = params.flag("active")
    if "nickname" in params:
        after["nickname"] = params.text("nickname")
    if "lookup_key" in params:
        key = params.text("lookup_key")
        if key is not None and key != before["lookup_key"]:
            _claim_lookup_key(world, key, is_transfer=bool(params.flag("transfer_lookup_key")))
        after["lookup_key"] = key
    return world.change(before, after, "price.updated")


def retrieve_price(world: World, call: Call) -> Json:
    return world.need("price", call.ids[0])


def list_prices(world: World, call: Call) -> Json:
    params = call.params
    params.only((*LIST_PARAMS, "active", "currency", "lookup_keys", "product", "recurring", "type"))
    active, keys, product = params.flag("active"), set(params.texts("lookup_keys")), params.text("product")
    currency, sort = params.text("currency"), params.choice("type", ("one_time", "recurring"))
    meter, interval = params.part("recurring").text("meter"), params.part("recurring").text("interval")

    def keep(price: Json) -> bool:
        recurring = cast("Json", price["recurring"] or {})
        return (
            (active is None or price["active"] == active)
            and (not keys or price["lookup_key"] in keys)
            and product in {None, price["product"]}
            and currency in {None, price["currency"]}
            and sort in {None, price["type"]}
            and meter in {None, recurring.get("meter")}
            and interval in {None, recurring.get("interval")}
        )

    return page(world, call, "price", keep=keep)


ROUTES: list[Route] = [
    ("POST", "/v1/products", create_product),
    ("GET", "/v1/products", list_products),
    ("GET", "/v1/products/search", search_products),
    ("GET", "/v1/products/{id}", retrieve_product),
    ("POST", "/v1/products/{id}", update_product),
    ("DELETE", "/v1/products/{id}", delete_product),
    ("POST", "/v1/prices", create_price),
    ("GET", "/v1/prices", list_prices),
    ("GET", "/v1/prices/{id}", retrieve_price),
    ("POST", "/v1/prices/{id}", update_price),
]
