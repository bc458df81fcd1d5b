"""Which path is served by which handler."""

from devkit.stripe import (
    catalogue,
    checkout,
    clocks,
    customers,
    events,
    invoices,
    meters,
    payments,
    portal,
    subscriptions,
    thin_events,
)
from devkit.stripe.errors import ApiError
from devkit.stripe.rendering import Include
from devkit.stripe.world import Handler, Route

ROUTES: list[Route] = [
    *customers.ROUTES,
    *catalogue.ROUTES,
    *payments.ROUTES,
    *subscriptions.ROUTES,
    *invoices.ROUTES,
    *checkout.ROUTES,
    *events.ROUTES,
    *portal.ROUTES,
    *meters.ROUTES,
    *thin_events.ROUTES,
    *clocks.ROUTES,
]
INCLUDES: dict[tuple[str, str], Include] = {
    ("checkout.session", "line_items"): checkout.session_lines,
    ("invoice", "payments"): invoices.invoice_payments,
    ("invoice", "confirmation_secret"): invoices.confirmation_secret,
    ("charge", "refunds"): payments.charge_refunds,
}


def _by_method_and_length() -> dict[tuple[str, int], list[tuple[list[str], Handler]]]:
    table: dict[tuple[str, int], list[tuple[list[str], Handler]]] = {}
    for method, path, handler in ROUTES:
        steps = path.split("/")
        table.setdefault((method, len(steps)), []).append((steps, handler))
    return table


_TABLE = _by_method_and_length()


def resolve(method: str, path: str) -> tuple[Handler, list[str]]:
    """The handler for a path and the ids in it; routes with fixed words come before those with ids."""
    steps = path.split("/")
    for pattern, handler in _TABLE.get((method, len(steps)), []):
        if all(want in {"{id}", got} for want, got in zip(pattern, steps, strict=True)):
            return handler, [got for want, got in zip(pattern, steps, strict=True) if want == "{id}"]
    raise ApiError.invalid(
        f"Unrecognized request URL ({method}: {path}), or one that the local emulator does not serve. "
        "Its README lists the calls it knows."
    )
