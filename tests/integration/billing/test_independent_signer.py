"""Deliveries signed by Stripe's JavaScript library, which shares no line with our check."""

import time

import orjson

from tests.harness.billing import Billing
from tests.harness.javascript import run_client_beside


async def sign(payload: bytes, secret: str, *, timestamp: int) -> str:
    asked = {"payload": payload.decode(), "secret": secret, "timestamp": timestamp}
    return await run_client_beside("stripe", "sign.mjs", stdin=orjson.dumps(asked).decode())


async def test_what_stripe_s_own_library_signs_is_accepted(quiet_billing: Billing) -> None:
    event = {"id": "evt_js", "object": "event", "type": "charge.succeeded", "created": int(time.time())}
    # Blanks and letters beyond ASCII: only the bytes as they came have this signature.
    payload = orjson.dumps(
        {**event, "livemode": False, "data": {"object": {"id": "ch_1", "description": "Zoë ☕"}}},
        option=orjson.OPT_INDENT_2,
    )
    now = int(time.time())
    genuine = await sign(payload, quiet_billing.stripe.webhook_secret, timestamp=now)
    forged = await sign(payload, "whsec_of_somebody_else", timestamp=now)
    old = await sign(payload, quiet_billing.stripe.webhook_secret, timestamp=now - 400)
    assert (await quiet_billing.post_webhook(payload, forged)).status_code == 400
    assert (await quiet_billing.post_webhook(payload, old)).status_code == 400
    assert await quiet_billing.database.fetchval("SELECT count(*) FROM billing.stripe_events") == 0
    assert (await quiet_billing.post_webhook(payload, genuine)).status_code == 200
    assert await quiet_billing.database.fetchval("SELECT count(*) FROM billing.stripe_events") == 1
