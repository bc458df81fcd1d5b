"""Print the broker's users and rights as one line of JSON, which deploy/compose.yaml takes as RABBITMQ_DEFINITIONS.

GATEWAY_AMQP_PASSWORD=... BILLING_AMQP_PASSWORD=... python -m ops.broker_users
"""

import json
import os
import sys
from collections.abc import Mapping

from ops.engines.definitions import OPERATOR, SERVICES, render_definitions
from ops.stack.environments import VHOST


def one_line(values: Mapping[str, str]) -> str:
    """Raises KeyError naming a password that is missing."""
    passwords = {user: values[f"{user.upper()}_AMQP_PASSWORD"] for user in (OPERATOR, *SERVICES)}
    return json.dumps(json.loads(render_definitions(vhosts=[VHOST], passwords=passwords)), separators=(",", ":"))


def main() -> None:
    try:
        print(one_line(os.environ))
    except KeyError as missing:
        sys.exit(f"{missing.args[0]} is not set: each user of the broker needs a password.")


if __name__ == "__main__":
    main()
