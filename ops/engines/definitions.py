"""What the broker knows from its first moment: vhosts, users with hashed passwords, and what each may touch.

A service may declare, bind, consume and publish to only what begins with its own name. The one thing shared is the
exchange `events`, which is made here: a service may listen to all of it and publish under routing keys that begin with
its own name, so that no service can forge another's events or send anything into another's queue. Only the operator
may do everything. There is no guest.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence

OPERATOR = "operator"
SERVICES: tuple[str, ...] = ("gateway", "billing", "metering", "agents")
_EVENTS = "events"


def render_definitions(*, vhosts: Sequence[str], passwords: Mapping[str, str]) -> str:
    """The definitions file. `passwords` has one entry for each user: the operator and the services."""
    users = [_user(name, password) for name, password in sorted(passwords.items())]
    pairs = [(vhost, name) for vhost in vhosts for name in sorted(passwords)]
    return json.dumps(
        {
            "vhosts": [{"name": vhost} for vhost in vhosts],
            "users": users,
            "exchanges": [
                {
                    "name": _EVENTS,
                    "vhost": vhost,
                    "type": "topic",
                    "durable": True,
                    "auto_delete": False,
                    "internal": False,
                    "arguments": {},
                }
                for vhost in vhosts
            ],
            "permissions": [{"vhost": vhost, "user": name, **permissions(name)} for vhost, name in pairs],
            "topic_permissions": [_publishing(vhost, name) for vhost, name in pairs if name != OPERATOR],
        },
        indent=1,
    )


def permissions(user: str) -> dict[str, str]:
    """By the broker's three kinds. The default exchange is nobody's: it leads to every queue there is."""
    if user == OPERATOR:
        return {"configure": ".*", "write": ".*", "read": ".*"}
    own = rf"{user}\..+"
    return {"configure": f"^{own}$", "write": f"^({_EVENTS}|{own})$", "read": f"^({_EVENTS}|{own})$"}


def _publishing(vhost: str, user: str) -> dict[str, str]:
    return {"vhost": vhost, "user": user, "exchange": _EVENTS, "write": rf"^{user}\.", "read": ".*"}


def _user(name: str, password: str) -> dict[str, object]:
    return {
        "name": name,
        "password_hash": hash_password(name, password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["administrator"] if name == OPERATOR else [],
    }


def hash_password(name: str, password: str) -> str:
    """RabbitMQ's salted SHA-256. The salt follows from name and password: the same input must give the same file."""
    salt = hmac.digest(password.encode(), name.encode(), "sha256")[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
