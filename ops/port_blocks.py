"""Which block of ports belongs to which home, so that stacks which start at the same moment never plan the same ones.

Looking whether a port is free does not suffice: a stack plans all its ports at once, and its last program listens
half a minute later. A claim lasts as long as its home exists, so that a stack which comes up again finds its ports.
"""

import fcntl
import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ops.home import Home

BLOCK = 50
# Below the range from which the system serves outgoing connections.
_BLOCKS = range(20000, 32000, BLOCK)


def claim_block(home: Home, *, ledger: Path | None = None, blocks: Sequence[int] = _BLOCKS) -> int:
    """The first port of the block that is `home`'s alone, the same one at each call.

    With every block claimed it shares the one that its name stands for; who listens there already is still seen.
    """
    usual = int(home.digest, 16) % len(blocks)
    with _claims(ledger or _default_ledger()) as claims:
        for block, owner in list(claims.items()):
            if not Path(owner).exists():
                del claims[block]
        own = next((block for block, owner in claims.items() if owner == str(home.path)), None)
        if own is not None:
            return int(own)
        order = (*blocks[usual:], *blocks[:usual])
        first = next((block for block in order if str(block) not in claims), order[0])
        claims.setdefault(str(first), str(home.path))
        return first


@contextmanager
def _claims(ledger: Path) -> Generator[dict[str, str]]:
    """Who has which block, for whoever holds the lock of the file; what the body changes is kept."""
    with _opened(ledger) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        claims: dict[str, str] = json.loads(file.read() or "{}")
        yield claims
        file.seek(0)
        file.truncate()
        json.dump(claims, file)


def _opened(ledger: Path) -> IO[str]:
    return os.fdopen(os.open(ledger, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")


def _default_ledger() -> Path:
    return Path("/var/tmp") / f"venture-ports-{os.geteuid()}.json"  # noqa: S108 - refuses links, and is its owner's
