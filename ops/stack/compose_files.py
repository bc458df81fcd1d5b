"""What the compose files of deploy/ are given here: a value for each name they ask for, and further replicas."""

import json
from collections.abc import Mapping

from ops.broker_users import one_line
from ops.home import ROOT
from ops.ports import port_setting
from ops.stack.environments import KNOWN_BY, Addresses, port_name
from ops.stack.scale import replicas

COMPOSE_FILE = ROOT / "deploy" / "compose.yaml"
DEVELOPMENT_FILE = ROOT / "deploy" / "compose.development.yaml"
# As the containers reach what a person reaches through a port of this machine.
STRIPE, MAILBOX = "http://stripe:8420", "smtp://mailbox:8025"


def compose_settings(where: Addresses) -> dict[str, str]:
    """Every name that the compose files ask for, as this stack has it. Empty means: the service's own default."""
    known = {name for names in KNOWN_BY.values() for name in names}
    gateway = where.http("gateway")
    return {
        **dict.fromkeys(sorted(known), ""),
        "ENVIRONMENT": "development",
        "FRONTEND_URL": gateway,
        "NEXT_PUBLIC_SUPABASE_URL": gateway,
        "SMTP_URL": MAILBOX,
        **{name: value for name, value in where.values.items() if value},
        **{port_setting(name): str(port) for name, port in where.ports.items()},
        "STRIPE_API_BASE": STRIPE if where.stripe == where.http("stripe") else where.stripe,
        "RABBITMQ_DEFINITIONS": one_line(where.values),
    }


def render_replicas(where: Addresses, scale: Mapping[str, int]) -> str:
    """A compose file with the second and further replicas: each its own service with a port of its own.

    Under its first replica's name it also answers inside the network, so that callers there are spread over all.
    """
    # A dollar sign in the path would be taken for a variable.
    file = json.dumps(str(COMPOSE_FILE).replace("$", "$$"))
    parts = [
        f"""\
  {port_name(service, number)}:
    extends: {{file: {file}, service: {service}}}
    build: !reset null
    ports: !override ["127.0.0.1:{where.ports[port_name(service, number)]}:8000"]
    networks:
      default: {{aliases: [{service}]}}
"""
        for service, number in replicas(scale)
        if number > 1
    ]
    return "services:\n" + "".join(parts) if parts else "services: {}\n"
