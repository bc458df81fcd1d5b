"""What the broker knows from its first moment: vhosts, users with hashed passwords, and what each may touch.

A service may declare, bind and consume only what begins with its own name, besides the shared exchanges; on the
exchange `events` it may publish only under routing keys that begin with its own name, so that no service can forge
another's events. Only the operator may do everything. There is no guest.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence

OPERATOR = "operator"
SERVICES: tuple[str, ...] = ("gateway", "billing", "metering", "agents")
_RETRY = r"retry\.[0-9]+s"


def render_definitions(*, vhosts: Sequence[str], passwords: Mapping[str, str]) -> str:
    """The definitions file. `passwords` has one entry for each user: the operator and the services."""
    users = [_user(name, password) for name, password in sorted(passwords.items())]
    pairs = [(vhost, name) for vhost in vhosts for name in sorted(passwords)]
    return json.dumps(
        {
            "vhosts": [{"name": vhost} for vhost in vhosts],
            "users": users,
            "permissions": [{"vhost": vhost, "user": name, **permissions(name)} for vhost, name in pairs],
            "topic_permissions": [_publishing(vhost, name) for vhost, name in pairs if name != OPERATOR],
        },
        indent=1,
    )


def permissions(user: str) -> dict[str, str]:
    """The default exchange goes by the name amq.default; a queue declared to dead-letter must also be readable."""
    if user == OPERATOR:
        return {"configure": ".*", "write": ".*", "read": ".*"}
    own = rf"events|{_RETRY}|{user}\..+"
    return {"configure": f"^({own})$", "write": rf"^({own}|amq\.default)$", "read": f"^({own})$"}


def _publishing(vhost: str, user: str) -> dict[str, str]:
    return {"vhost": vhost, "user": user, "exchange": "events", "write": rf"^{user}\.", "read": ".*"}


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
