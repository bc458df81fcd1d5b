"""Where the running product is and how an operator gets in: from the environment, else from the stack beside us."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ops.engines.definitions import SERVICES
from ops.failure import Failure
from ops.home import Home
from ops.stack.stack import Stack

DATABASE_URL: Final = "OPERATOR_DATABASE_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """`values` are named as in .env.example; what is needed and missing is said when it is needed."""

    values: Mapping[str, str] = field(repr=False)
    logs: Path | None = None

    def need(self, name: str) -> str:
        value = self.values.get(name, "")
        if not value:
            raise Failure(
                f"{name} is not set, and no stack runs here to take it from. Set it, or start one with `make up`."
            )
        return value

    def get(self, name: str) -> str:
        return self.values.get(name, "")

    def replicas(self, service: str) -> Mapping[str, str]:
        """The address of each replica by its name: `gateway-1`, `gateway-2`…"""
        several = self.get(f"{service.upper()}_URLS") or self.get(f"{service.upper()}_URL")
        addresses = [address for address in several.split(",") if address]
        return {f"{service}-{number}": address for number, address in enumerate(addresses, start=1)}

    @property
    def services(self) -> Mapping[str, str]:
        return {name: address for service in SERVICES for name, address in self.replicas(service).items()}


def find_access() -> Access:
    """The stack in VENTURE_HOME or this checkout, unless the environment names another database than that stack's."""
    home = Home.of()
    named = os.environ.get(DATABASE_URL)
    stack = Stack(home.path)
    found = stack.operator_environment() if stack.is_running() else {}
    if found and named in {None, "", found[DATABASE_URL]}:  # a shell that evaluated `make env` names our own
        return Access(values=found, logs=home.logs)
    if not named:
        raise Failure(
            f"There is nothing to operate: {DATABASE_URL} is not set, and no stack runs in {home.path}. "
            "`make up` starts one; for another, set the names that `venture verify-env --list` prints."
        )
    return Access(values=dict(os.environ))
