"""What each creating route takes of the caller's plan: declared in one table, so that no route can forget its limit.

A route that makes nothing a plan limits says so by being `UNMETERED`. A test walks the OpenAPI document, and fails for
a route that is not in the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    metrics: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def describe(self) -> Any:
        """As the OpenAPI document tells it."""
        if self == UNMETERED:
            return "unmetered"
        return {"metrics": sorted(self.metrics), "features": sorted(self.features)}


UNMETERED: Final = Metered()

METERED: Final[Mapping[str, Metered]] = {
    "POST /v1/runs": Metered(metrics=("runs", "tokens")),
    "POST /v1/runs/{row_id}/approval": UNMETERED,  # the run's hold covers what it goes on to use
    "POST /v1/runs/{row_id}/cancel": UNMETERED,
    "POST /v1/runs/{row_id}/feedback": UNMETERED,
    "GET /v1/runs/export": Metered(metrics=("exports",)),
    "POST /v1/templates": Metered(metrics=("templates",)),
    "POST /v1/templates/{row_id}/restore": UNMETERED,
    "POST /v1/templates/{row_id}/share": UNMETERED,
    "POST /v1/prompts/preview": UNMETERED,  # no model is called
    "POST /v1/webhook-endpoints": UNMETERED,
    "POST /v1/webhook-endpoints/{row_id}/rotate": UNMETERED,
    "POST /v1/usage/events": UNMETERED,  # it is usage, and counted whatever the limit
    "POST /v1/billing/checkout": UNMETERED,
    "POST /v1/billing/portal": UNMETERED,
    "POST /v1/api-keys": UNMETERED,
    "POST /v1/api-keys/{key_id}/rotate": UNMETERED,
    "POST /v1/admin/users/{user_id}/usage/reset": UNMETERED,
    "POST /v1/admin/users/{user_id}/grants": UNMETERED,
    "POST /v1/admin/queues/{queue}/replay": UNMETERED,
    "POST /v1/admin/queues/{queue}/discard": UNMETERED,
    "POST /v1/admin/customers/link": UNMETERED,
    "POST /v1/admin/reconcile": UNMETERED,
    "POST /v1/admin/webhook-events/replay": UNMETERED,
    "POST /billing/webhook": UNMETERED,
    "POST /webhooks/{kind}/{endpoint_id}": UNMETERED,  # a run that follows from it is held when it is proposed
}
