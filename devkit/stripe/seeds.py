"""What is there from the start: the endpoint and the plans that the command line names."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from devkit.stripe import catalogue
from devkit.stripe.errors import Json
from devkit.stripe.events import OWN_ENDPOINT, new_endpoint
from devkit.stripe.forms import Params
from devkit.stripe.world import World, copied


def seed(world: World) -> None:
    """Bring the endpoint and the priced tiers into being, or up to date; safe to repeat."""
    with world.store.transaction():
        if world.seeds.webhook_url is not None:
            _seed_endpoint(world, world.seeds.webhook_url, world.seeds.webhook_secret)
        if world.seeds.plans is not None and world.seeds.plans.is_file():
            for tier, plan in priced_tiers(world.seeds.plans).items():
                _seed_plan(world, tier, plan)


def _seed_endpoint(world: World, url: str, secret: str | None) -> None:
    before = world.store.find(OWN_ENDPOINT)
    if before is None or before.get("deleted"):
        if before is not None:
            world.store.sql.execute("DELETE FROM objects WHERE id = ?", (OWN_ENDPOINT,))
        new_endpoint(world, url=url, enabled=["*"], secret=secret, own_id=OWN_ENDPOINT)
    else:
        world.store.put(copied(before) | {"url": url, "status": "enabled"} | ({"_secret": secret} if secret else {}))


def priced_tiers(path: Path) -> dict[str, Json]:
    """The tiers that have a lookup key and a price above zero, as the file has them."""
    with path.open("rb") as file:
        tiers: object = tomllib.load(file).get("tiers", {})
    found: dict[str, Json] = {}
    for name, plan in cast("Mapping[str, Any]", tiers if isinstance(tiers, dict) else {}).items():
        if not isinstance(plan, dict):
            continue
        fields = cast("Json", plan)
        price = fields.get("price_minor")
        if fields.get("stripe_lookup_key") and isinstance(price, int) and price > 0:
            found[name] = fields
    return found


def _seed_plan(world: World, tier: str, plan: Json) -> None:
    key = str(plan["stripe_lookup_key"])
    wanted = (plan["price_minor"], str(plan.get("currency") or "usd").lower(), str(plan.get("interval") or "month"))
    held = next((p for p in world.store.newest_first("price") if p["lookup_key"] == key and p["active"]), None)
    if held is not None and (held["unit_amount"], held["currency"], held["recurring"]["interval"]) == wanted:
        return
    name = str(plan.get("name") or tier)
    product = (
        str(held["product"]) if held else catalogue.new_product(world, {"name": name, "metadata": {"tier": tier}})["id"]
    )
    catalogue.price_from(
        world,
        Params(
            {
                "currency": wanted[1],
                "lookup_key": key,
                "metadata": {"tier": tier},
                "nickname": name,
                "recurring": {"interval": wanted[2]},
                "transfer_lookup_key": "true",
                "unit_amount": wanted[0],
            }
        ),
        product,
    )
