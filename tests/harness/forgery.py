"""Deliveries of a thousand events as a storm brings them: repeated, out of order, and some of them forged."""

import random
import time
from collections.abc import Sequence

import orjson

from tests.harness.billing import Billing
from tests.harness.storm import Delivery


def stormy_deliveries(billing: Billing, *, events: int, deliveries: int, seed: int) -> Sequence[tuple[Delivery, bool]]:
    """About events a tenth as many objects. Each event comes genuine at least once; a tenth are signed by others."""
    now, chance = int(time.time()), random.Random(seed)  # noqa: S311 - an order that comes again
    made: list[tuple[Delivery, bool]] = []
    for number in range(deliveries):
        event = chance.randrange(events) if number >= events else number
        payload = orjson.dumps(
            {
                "id": f"evt_{event}",
                "object": "event",
                "type": "customer.subscription.updated",
                # Many in the same second: their order says nothing.
                "created": now - event % 3,
                "livemode": False,
                "data": {"object": {"id": f"sub_{event % max(events // 10, 1)}", "object": "subscription"}},
            }
        )
        # Forged ones name events that never were: a row of theirs would show.
        is_forged = number >= events and chance.random() < 0.1 * deliveries / (deliveries - events)
        if is_forged:
            payload = payload.replace(b'"evt_', b'"evt_forged_')
        signature = billing.signature(payload, secret="whsec_of_somebody_else" if is_forged else None)
        made.append((Delivery(payload=payload, signature=signature), is_forged))
    chance.shuffle(made)
    return made
