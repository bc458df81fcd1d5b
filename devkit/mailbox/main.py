"""The command line: one process that listens for SMTP and for HTTP."""

import argparse
import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from devkit.mailbox.api import routes
from devkit.mailbox.smtp import Chaos, Postman, protocol
from devkit.mailbox.store import Letters


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m devkit.mailbox",
        description="Keeps every letter it is given and shows it; sends nothing on. The API is Mailpit's.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    add("--smtp-port", type=int, default=8025, help="port for SMTP (default: %(default)s)")
    add("--http-port", type=int, default=8026, help="port for the API and the inbox page (default: %(default)s)")
    add("--state", type=Path, default=Path(".local/mailbox.db"), help="state file, kept across restarts (%(default)s)")
    add("--keep", type=int, default=1_000, help="how many letters to keep (default: %(default)s)")
    return parser.parse_args(argv)


def build_app(letters: Letters, *, host: str, smtp_port: int) -> Starlette:
    """The HTTP side; SMTP is open as long as its lifespan lasts."""
    chaos = Chaos()
    postman = Postman(letters, chaos)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        server = await asyncio.get_running_loop().create_server(lambda: protocol(postman), host, smtp_port)
        async with server:
            yield

    return Starlette(routes=routes(letters, chaos), lifespan=lifespan)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until told to stop."""
    flags = parse(argv)
    letters = Letters(flags.state, most=flags.keep)
    try:
        sys.stdout.write(
            f"Mailbox: SMTP on {flags.host}:{flags.smtp_port}, inbox on http://{flags.host}:{flags.http_port}\n"
        )
        sys.stdout.flush()
        app = build_app(letters, host=flags.host, smtp_port=flags.smtp_port)
        uvicorn.run(app, host=flags.host, port=flags.http_port, log_level="warning", access_log=False, ws="none")
    finally:
        letters.close()
