"""The three engines' programs: where they are on this machine, and installing those that are missing.

Installing starts no system service: the stack runs instances of its own, on ports and data of its own.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ops.failure import Failure

_POLICY = Path("/usr/sbin/policy-rc.d")
_APT = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0", "-qq", "-y")


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Paths of what is run, in versions that are new enough."""

    postgres: Path
    initdb: Path
    rabbitmq: Path
    epmd: Path
    redis: Path


def find_programs() -> Programs:
    """The installed programs; raises `Failure` naming what is missing."""
    if missing := missing_packages():
        raise Failure(f"Missing: {', '.join(missing)}. Install these packages of your system, then try again.")
    postgres, rabbitmq, redis, epmd = find_postgres(), _find_rabbitmq(), shutil.which("redis-server"), _find_epmd()
    if not (postgres and rabbitmq and redis and epmd):
        raise Failure("The engines' programs vanished while they were being looked up. Try again.")
    initdb = postgres.with_name("initdb")
    return Programs(postgres=postgres, initdb=initdb, rabbitmq=rabbitmq, epmd=epmd, redis=Path(redis))


def missing_packages() -> list[str]:
    """Names, as the system's packages have them, of what is not there or too old."""
    found = {
        "postgresql": find_postgres(),
        "rabbitmq-server": _find_rabbitmq() and _find_epmd(),
        "redis-server": _find_redis(),
    }
    return [package for package, program in found.items() if not program]


def ensure_programs() -> Programs:
    """The programs, after installing what is missing where that is possible (root on Debian or a relative of it)."""
    if missing := missing_packages():
        names = " ".join(missing)
        if not shutil.which("apt-get"):
            raise Failure(
                "PostgreSQL >= 15, RabbitMQ >= 3.10 and Redis >= 7 are needed, and not all are here: "
                f"{', '.join(missing)}. Install them with this system's package tool, or start a Docker engine."
            )
        if os.geteuid() != 0:
            raise Failure(f"Not all engines are installed. Run `sudo apt-get install {names}`, then try again.")
        _install(missing)
        if still := missing_packages():
            raise Failure(
                f"Installed, but not new enough: {', '.join(still)}. PostgreSQL >= 15, RabbitMQ >= 3.10 and "
                "Redis >= 7 are needed: use Debian 12 or later, or start a Docker engine."
            )
    return find_programs()


def ensure_program(name: str, *, package: str) -> Path:
    """A program that only some tests and tools need, after installing its package where that is possible.

    Raises `Failure` with the command to run where it is not.
    """
    if found := shutil.which(name):
        return Path(found)
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise Failure(
            f"{name} is missing. Install the package `{package}` with this system's package tool, then try again."
        )
    _install((package,))
    if found := shutil.which(name):
        return Path(found)
    raise Failure(f"The package `{package}` was installed and has no program `{name}`. Install one by hand.")


def _install(packages: Sequence[str]) -> None:
    print(f"Installing {', '.join(packages)} with apt; this happens once.", file=sys.stderr, flush=True)
    install = (*_APT, "install", "--no-install-recommends", *packages)
    with _services_kept_down():
        _settle_dpkg()
        # A list that is there is tried first, since fetching it costs; if that fails, it may have been stale.
        is_listed = any(Path("/var/lib/apt/lists").glob("*_Packages*"))
        if (not is_listed or _apt(install) != 0) and (_apt((*_APT, "update")) != 0 or _apt(install) != 0):
            raise Failure(
                f"apt could not install {' '.join(packages)}; its own messages are above. "
                "Mend that (network, disk, package sources), then try again."
            )
    _disable_units(packages)


def _settle_dpkg() -> None:
    """Finish what an interrupted installation left half done; without this apt would refuse to work."""
    audit = subprocess.run(("dpkg", "--audit"), check=False, capture_output=True, text=True)
    if audit.stdout.strip():
        _apt(("dpkg", "--configure", "-a"))


def _apt(command: Sequence[str]) -> int:
    """Run in a session of its own, because Ctrl-C in the middle would leave dpkg's database broken."""
    print(f"  {' '.join(command)}", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    ) as running:
        try:
            return running.wait()
        except KeyboardInterrupt:
            print("Finishing the installation first, to leave it in order.", file=sys.stderr, flush=True)
            running.wait()
            raise


@contextmanager
def _services_kept_down() -> Generator[None]:
    """Debian asks this script before any package starts a service. A machine that has one of its own keeps it."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def _disable_units(packages: Sequence[str]) -> None:
    """Keep the system's instances, which nobody asked for, from starting with the next boot."""
    if Path("/run/systemd/system").exists():
        subprocess.run(("systemctl", "disable", "--quiet", *packages), check=False)


def find_postgres() -> Path | None:
    versions = sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if versions:
        return versions[-1] if int(versions[-1].parts[4]) >= 15 else None  # noqa: PLR2004 - the oldest version with what the migrations use
    named = shutil.which("postgres")
    return Path(named) if named and _at_least((named, "--version"), (15, 0)) else None


def _find_rabbitmq() -> Path | None:
    """The script itself, not the one in /usr/sbin, which insists on its own user and paths."""
    candidates = (
        Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),
        Path(shutil.which("rabbitmq-server") or "/nonexistent"),
    )
    found = next((path for path in candidates if path.exists()), None)
    if not found:
        return None
    version = re.search(r"rabbitmq_server-(\d+)\.(\d+)", str(found.resolve()))
    return found if not version or (int(version[1]), int(version[2])) >= (3, 10) else None


def _find_epmd() -> Path | None:
    """Erlang's name service, beside `erl` or in the runtime's own directory."""
    named = shutil.which("epmd") or next(map(str, Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
    return Path(named) if named else None


def _find_redis() -> Path | None:
    named = shutil.which("redis-server")
    return Path(named) if named and _at_least((named, "--version"), (7, 0)) else None


def _at_least(command: Sequence[str], wanted: tuple[int, int]) -> bool:
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    version = re.search(r"(\d+)\.(\d+)", output)
    return bool(version) and (int(version[1]), int(version[2])) >= wanted
