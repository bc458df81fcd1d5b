"""An SMTP server for work that sends mail; it takes everything."""

import asyncio
import socket
from typing import Any

from aiosmtpd.smtp import SMTP

from libs.common.process import Loop


class Letterbox:
    async def handle_DATA(self, _server: Any, _session: Any, _envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        return "250 taken"


def open_letterbox() -> tuple[str, Loop]:
    """Its address, and the loop that serves it."""
    listener = socket.create_server(("127.0.0.1", 0))

    async def take_mail() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: SMTP(Letterbox()), sock=listener)
        async with server:
            await server.serve_forever()

    return f"smtp://127.0.0.1:{listener.getsockname()[1]}", take_mail
