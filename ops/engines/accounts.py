"""As which system user an engine runs, and where it can keep its data as that user.

PostgreSQL refuses to run as root. Root therefore lets it run as the user that its system package made, and that user
may be unable to enter the home (a checkout below /root, say): then the data goes to a place outside, behind a symlink.
"""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from ops.failure import Failure
from ops.home import Home, outside

POSTGRES_ACCOUNT = "postgres"


def prefix() -> tuple[str, ...]:
    """Words before a command that must not run as root."""
    if os.geteuid() != 0:
        return ()
    account = pwd.getpwnam(POSTGRES_ACCOUNT)
    return ("setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups")


def check_account() -> None:
    try:
        prefix()
    except KeyError:
        raise Failure(
            f"PostgreSQL refuses to run as root, and there is no user {POSTGRES_ACCOUNT!r} to run it as. "
            f"Create one with `useradd --system {POSTGRES_ACCOUNT}`, or run this as another user than root."
        ) from None


def data_directory(home: Home, name: str) -> Path:
    """Where the data called `name` of this home is, or is to be created; reachable by the user it runs as."""
    link = home.data / name
    if link.is_symlink() or link.exists() or _can_enter(home.data):
        return link
    target = outside(home) / name
    link.symlink_to(target)
    return link


def give_to_account(directory: Path) -> None:
    if os.geteuid() == 0:
        account = pwd.getpwnam(POSTGRES_ACCOUNT)
        shutil.chown(directory, account.pw_uid, account.pw_gid)


def _can_enter(directory: Path) -> bool:
    return subprocess.run([*prefix(), "test", "-x", directory], check=False, cwd="/").returncode == 0
