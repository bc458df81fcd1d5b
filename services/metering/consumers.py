"""Events metering consumes: one plain function each, run in the runner's transaction."""

from collections.abc import Sequence
from typing import Final

from libs.common.broker import Subscription

SUBSCRIPTIONS: Final[Sequence[Subscription]] = ()
