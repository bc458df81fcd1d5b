"""Usage that was reported to meters, added up for a customer over a period."""

from decimal import Decimal

from devkit.stripe.errors import Json
from devkit.stripe.world import World


def used(world: World, meter: Json, customer: str, start: int, end: int) -> Decimal:
    """The meter's aggregate over `[start, end)`: a sum, a count or the last value."""
    rows = world.store.sql.execute(
        "SELECT value FROM usage WHERE meter = ? AND customer = ? AND at >= ? AND at < ? ORDER BY at, rowid",
        (meter["id"], customer, start, end),
    ).fetchall()
    values = [Decimal(row["value"]) for row in rows]
    match meter["default_aggregation"]["formula"]:
        case "count":
            return Decimal(len(values))
        case "last":
            return values[-1] if values else Decimal(0)
        case _:
            return sum(values, Decimal(0))
