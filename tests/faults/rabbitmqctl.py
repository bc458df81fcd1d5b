"""The broker's own command line, for what cannot be asked over AMQP: alarms."""

import asyncio
import os
from typing import Final

from ops.stack.stack import Stack
from tests.faults.soak.ports import Ports

_PROGRAM: Final = "/usr/lib/rabbitmq/bin/rabbitmqctl"
_NODE: Final = "venture@localhost"


async def rabbitmqctl(stack: Stack, *arguments: str) -> str:
    """Raises RuntimeError with what it said if it failed."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(stack.home.data / "rabbitmq"),  # where the cookie is
        "ERL_EPMD_PORT": str(Ports(stack).of("rabbitmq-epmd")),
        "LANG": "C.UTF-8",
    }
    process = await asyncio.create_subprocess_exec(
        _PROGRAM,
        "-n",
        _NODE,
        *arguments,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    if process.returncode != 0:
        raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {said}")
    return said
