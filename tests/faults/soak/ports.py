"""Where each process of the stack under test listens."""

from dataclasses import dataclass

from ops.stack import state
from ops.stack.environments import port_name
from ops.stack.stack import Stack


@dataclass(frozen=True, slots=True)
class Ports:
    stack: Stack

    def of(self, name: str) -> int:
        return state.load(self.stack.home).ports[name]

    def url(self, service: str, number: int) -> str:
        return f"http://127.0.0.1:{self.of(port_name(service, number))}"

    def service_urls(self) -> list[str]:
        names = [name.removesuffix("-metrics") for name in state.load(self.stack.home).ports if "-metrics" in name]
        return [f"http://127.0.0.1:{self.of(name)}" for name in names]
