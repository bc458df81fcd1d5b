"""One comparison by its name: `python -m bench gateway`, or `make bench-gateway`."""

import importlib
import sys
from typing import Final

COMPARISONS: Final = {
    "gateway": "gateway",
    "accept": "accept",
    "events": "event_peers",
    "ingest": "ingest",
    "holds": "holds",
    "webhooks": "webhooks",
    "runs": "run_peers",
    "streams": "delivery",
    "growth": "growth",
}


def main() -> None:
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in COMPARISONS:
        raise SystemExit(f"usage: python -m bench {'|'.join(COMPARISONS)}")
    importlib.import_module(f"bench.{COMPARISONS[name]}").main()


if __name__ == "__main__":
    main()
