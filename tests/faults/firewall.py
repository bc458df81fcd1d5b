"""Packets that vanish, by rules of the kernel: unlike a proxy, nobody acknowledges them, and TCP's own timers run.

Needs root and iptables. A rule names one port of a stack under test. It is kept by a shell that takes it back when its
standard input closes, so that it goes with the test even if that is killed.
"""

import os
import shlex
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

_IPTABLES: Final = "/usr/sbin/iptables"


def may_drop_packets() -> bool:
    if os.geteuid() != 0 or not os.access(_IPTABLES, os.X_OK):
        return False
    return subprocess.run((_IPTABLES, "-w", "-n", "-L", "INPUT"), capture_output=True, check=False).returncode == 0


@contextmanager
def dropped_packets(port: int) -> Generator[None, None, None]:
    """What is sent to this port of the loopback device does not arrive; what is sent from it does."""
    rule = shlex.join(("INPUT", "-i", "lo", "-p", "tcp", "--dport", str(port), "-j", "DROP"))
    keeper = subprocess.Popen(
        ("/bin/sh", "-c", f"{_IPTABLES} -w -I {rule} && echo on && read _; {_IPTABLES} -w -D {rule}"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if not (keeper.stdin and keeper.stdout):
        raise RuntimeError("the keeper of the rule has no pipes")
    try:
        if keeper.stdout.readline() != "on\n":
            raise RuntimeError("the kernel takes no rule")
        yield
    finally:
        keeper.stdin.close()
        keeper.wait()
        keeper.stdout.close()
