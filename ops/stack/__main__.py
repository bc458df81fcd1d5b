"""The command line behind the Makefile: python -m ops.stack up|down|status|env|logs|migrate|wipe|release|rollback."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from ops.failure import Failure
from ops.home import Home
from ops.stack.display import Display
from ops.stack.stack import Stack

_INTERRUPTED = 130


def up(stack: Stack, display: Display) -> int:
    began = time.monotonic()
    environment = stack.up(settings=os.environ)
    display.say(f"Up and healthy ({time.monotonic() - began:.1f} s).")
    display.say(f"  playground  {environment['GATEWAY_URL']}/")
    display.say(f"  admin       {environment['ADMIN_EMAIL']}, its password is ADMIN_PASSWORD in {stack.home.dotenv}")
    display.say(f"  mail        {environment['MAIL_API_URL']}/")
    display.say(f"  stripe      {environment['STRIPE_API_BASE'] or 'the real one'}")
    display.say("`make demo` shows what it does, `make status` how it is, `make logs` what it says.")
    return 0


def down(stack: Stack, display: Display) -> int:
    display.say("Stopped. The data is kept." if stack.down() else "Nothing was running.")
    return 0


def wipe(stack: Stack, display: Display) -> int:
    stack.wipe()
    display.say(f"Stopped, and removed all data of {stack.home.path}.")
    return 0


def status(stack: Stack, display: Display) -> int:
    if not stack.is_running():
        display.say("The stack is not running. `make up` starts it.")
        return 1
    return 0 if stack.show_status() else 1


def env(stack: Stack, display: Display) -> int:
    del display  # standard output is for the shell that evaluates it
    for name, value in stack.environment().items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def logs(stack: Stack, display: Display) -> int:
    """Follow the logs of everything, or of what S names, until Ctrl-C."""
    del display
    with suppress(KeyboardInterrupt):
        stack.follow_logs(os.environ.get("S", ""))
    return 0


def migrate(stack: Stack, display: Display) -> int:
    display.say(stack.migrate().strip() or "Nothing to apply.")
    return 0


def release(stack: Stack, display: Display) -> int:
    """Move to the images of TAG, building those that are missing."""
    tag = os.environ.get("TAG", "")
    if not tag:
        raise Failure("Say which: make release TAG=2026-11-27")
    stack.rollout().release(tag)
    display.say(f"{tag} runs. `make rollback` goes back.")
    return 0


def rollback(stack: Stack, display: Display) -> int:
    display.say(f"{stack.rollout().rollback()} runs again.")
    return 0


_COMMANDS: Mapping[str, Callable[[Stack, Display], int]] = {
    "up": up,
    "down": down,
    "status": status,
    "env": env,
    "logs": logs,
    "migrate": migrate,
    "wipe": wipe,
    "release": release,
    "rollback": rollback,
}


def main() -> int:
    display = Display()
    command = _COMMANDS.get(sys.argv[1]) if len(sys.argv) == 2 else None  # noqa: PLR2004 - the command and nothing else
    if command is None:
        display.say(f"Usage: python -m ops.stack {'|'.join(_COMMANDS)}")
        return os.EX_USAGE
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command(Stack(Home.of().path, display=display), display)
    except Failure as failure:
        display.say(str(failure))
        return 1
    except KeyboardInterrupt:
        display.say("Interrupted. What has started keeps running: `make up` goes on from here, `make down` stops it.")
        return _INTERRUPTED


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
