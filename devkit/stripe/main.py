"""The command line: read the flags, build the world, serve it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from devkit.stripe.app import build_app
from devkit.stripe.seeds import seed
from devkit.stripe.store import Store
from devkit.stripe.world import Seeds, Settings, World

PLANS = Path("config/plans.toml")
EPILOG = """
Point the stripe SDK at it:  StripeClient("sk_test_local", base_addresses={"api": "http://127.0.0.1:8420"})
Ready when GET /_emulator/health answers 200. What else it can do: devkit/README.md.
"""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m devkit.stripe",
        description="A stateful stand-in for the Stripe API. No money moves.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    add("--port", type=int, default=8420, help="port to listen on (default: %(default)s)")
    add("--public-url", help="how browsers reach it; goes into checkout and portal links (default: http://HOST:PORT)")
    add("--state", type=Path, default=Path(".local/stripe.db"), help="state file, kept across restarts (%(default)s)")
    add("--webhook-url", help="deliver every event here, besides endpoints made through the API")
    add("--webhook-secret", help="whsec_... to sign those deliveries with (default: a random one, kept in the state)")
    add("--seed-plans", type=Path, default=PLANS, help="TOML file whose priced tiers become prices (%(default)s)")
    add("--finalize-after-s", type=int, default=3600, help="age at which a renewal's draft invoice is finalized (3600)")
    add("--retry-days", default="3,5,7", help="days between attempts to collect a failed invoice (%(default)s)")
    add(
        "--after-final-failure",
        choices=("canceled", "unpaid", "past_due"),
        default="canceled",
        help="what a subscription becomes when the last attempt fails (%(default)s)",
    )
    add("--delivery-base-s", type=float, default=1.0, help="first pause before a delivery is repeated (%(default)s)")
    add("--delivery-cap-s", type=float, default=60.0, help="longest such pause; pauses double up to it (%(default)s)")
    return parser.parse_args(argv)


def build_world(flags: argparse.Namespace) -> World:
    settings = Settings(
        public_url=str(flags.public_url or f"http://{flags.host}:{flags.port}").rstrip("/"),
        finalize_after_s=flags.finalize_after_s,
        retry_days=tuple(int(days) for days in str(flags.retry_days).split(",") if days),
        after_final_failure=flags.after_final_failure,
        delivery_base_s=flags.delivery_base_s,
        delivery_cap_s=flags.delivery_cap_s,
    )
    seeds = Seeds(webhook_url=flags.webhook_url, webhook_secret=flags.webhook_secret, plans=flags.seed_plans)
    return World(Store(flags.state), settings, seeds)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until told to stop."""
    flags = parse(argv)
    world = build_world(flags)
    try:
        seed(world)
        sys.stdout.write(f"Stripe emulator on {world.settings.public_url}, state in {flags.state}. No money moves.\n")
        sys.stdout.flush()
        uvicorn.run(
            build_app(world), host=flags.host, port=flags.port, log_level="warning", access_log=False, ws="none"
        )
    finally:
        world.store.close()
