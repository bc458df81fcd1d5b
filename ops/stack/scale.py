"""How many replicas of each service run, from a text such as "gateway=2 agents=3"."""

import re
from collections.abc import Iterator, Mapping

from ops.engines.definitions import SERVICES
from ops.failure import Failure

_MOST = 20
_WORD = re.compile(r"([a-z]+)=(\d+)")


def parse_scale(text: str) -> dict[str, int]:
    """One entry for each service; what is not named runs once."""
    scale: dict[str, int] = dict.fromkeys(SERVICES, 1)
    for word in re.split(r"[\s,]+", text.strip()) if text.strip() else []:
        match = _WORD.fullmatch(word)
        if not match or match[1] not in scale:
            raise Failure(f'SCALE: "{word}" is not understood. Write it like SCALE="gateway=2 agents=3".')
        scale[match[1]] = int(match[2])
        if not 1 <= scale[match[1]] <= _MOST:
            raise Failure(f"SCALE: {word} is outside 1 to {_MOST}.")
    return scale


def replicas(scale: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Each replica to run, as (service, number from 1)."""
    for service, count in scale.items():
        yield from ((service, number) for number in range(1, count + 1))
