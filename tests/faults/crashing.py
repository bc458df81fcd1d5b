"""A service that dies at a named point: `python -m tests.faults.crashing SERVICE POINT FILE`.

The points lie where one system has taken something and the other does not know yet. They are put in here, around the
functions of the service, and nowhere in its own code: what runs in production has nothing that could be switched on.
FILE says how often the process is still to die there; at 0 it is an ordinary one.
"""

import functools
import importlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Death before or after a call of `function`, which is named as module:Class.name or module:name."""

    service: str
    when: Literal["before", "after"]
    function: str


POINTS: Final[Mapping[str, Point]] = {
    "between the hold and the acceptance": Point(
        service="gateway", when="after", function="services.gateway.quotas:Quotas.hold"
    ),
    "between the model's answer and its record": Point(
        service="agents", when="before", function="services.agents.runs.operations:finish_runs"
    ),
    "between the settlement and its commit": Point(
        service="metering", when="after", function="services.metering.operations:settle_holds"
    ),
    "between the commit and the ack": Point(
        service="metering", when="before", function="aiormq.channel:Channel.basic_ack"
    ),
    "between the publish and the mark": Point(service="agents", when="before", function="libs.common.outbox:mark_sent"),
    "between the webhook's row and its answer": Point(
        service="billing", when="after", function="services.billing.intake:Intake.store"
    ),
    "between Stripe's customer and its record": Point(
        service="billing", when="after", function="services.billing.stripe_payments:StripePayments.create_customer"
    ),
    "between Stripe's checkout and its record": Point(
        service="billing", when="after", function="services.billing.stripe_payments:StripePayments.create_checkout"
    ),
}


def die_if_due(left: Path) -> None:
    deaths = int(left.read_text(encoding="ascii"))
    if deaths > 0:
        left.write_text(str(deaths - 1), encoding="ascii")
        os.kill(os.getpid(), signal.SIGKILL)


def lay(point: Point, left: Path) -> None:
    """Put death around the function, wherever it is called from."""
    module_name, _, path = point.function.partition(":")
    owner: Any = importlib.import_module(module_name)
    *classes, name = path.split(".")
    for one in classes:
        owner = getattr(owner, one)
    original: Callable[..., Awaitable[Any]] = getattr(owner, name)

    @functools.wraps(original)
    async def deadly(*args: Any, **kwargs: Any) -> Any:
        if point.when == "before":
            die_if_due(left)
        result = await original(*args, **kwargs)
        if point.when == "after":
            die_if_due(left)
        return result

    setattr(owner, name, deadly)


def main() -> None:
    service, name, left, *arguments = sys.argv[1:]
    lay(POINTS[name], Path(left))
    sys.argv = [f"services.{service}.main", *arguments]
    importlib.import_module(f"services.{service}.main").main()


if __name__ == "__main__":
    main()
