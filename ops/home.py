"""Where one stack keeps everything it owns: data, logs, pids, and the files it generates.

The home itself may be entered by anyone, because PostgreSQL refuses to run as root and then runs as another user;
`run` and `log` hold secrets and what people did, and are their owner's alone.
"""

import hashlib
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from ops.failure import Failure

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_HOME = ROOT / ".local"
_SOCKET_PATH_LIMIT = 90  # 108 bytes by the kernel, less the suffix that supervisor appends while it creates one


@dataclass(frozen=True, slots=True)
class Home:
    path: Path

    @classmethod
    def of(cls, path: Path | None = None) -> "Home":
        """The home at `path`, else at VENTURE_HOME, else the checkout's own `.local`."""
        named = path or Path(os.environ.get("VENTURE_HOME") or DEFAULT_HOME)
        return cls(named.resolve())

    @property
    def is_default(self) -> bool:
        return self.path == DEFAULT_HOME

    @property
    def digest(self) -> str:
        """Short name of this home, for what must live outside it."""
        return hashlib.sha256(str(self.path).encode()).hexdigest()[:12]

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def disks(self) -> tuple[Path, Path]:
        """What may lie on two of them: a PostgreSQL that cannot enter the home keeps its data elsewhere."""
        return (self.path, (self.data / "postgres").resolve())

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def logs(self) -> Path:
        return self.path / "log"

    @property
    def pids(self) -> Path:
        return self.path / "pids"

    @property
    def dotenv(self) -> Path:
        """The settings file: at the root of the checkout for the developer's stack, inside the home for any other."""
        return ROOT / ".env" if self.is_default else self.path / ".env"

    @property
    def socket(self) -> Path:
        inside = self.run / "supervisor.sock"
        return inside if len(str(inside)) < _SOCKET_PATH_LIMIT else outside(self) / "supervisor.sock"

    def create(self) -> None:
        for directory, mode in ((self.path, 0o755), (self.data, 0o755), (self.pids, 0o755)):
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
        for directory in (self.run, self.logs):
            directory.mkdir(mode=0o700, exist_ok=True)


def outside(home: Home) -> Path:
    """Directory for what cannot live inside the home; refuses one that somebody else made under that name."""
    directory = _outside_path(home)
    directory.mkdir(mode=0o711, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise Failure(f"{directory} belongs to somebody else. Remove it, or set VENTURE_HOME to another directory.")
    return directory


def remove_outside(home: Home) -> None:
    directory = _outside_path(home)
    if directory.is_dir() and not directory.is_symlink() and directory.lstat().st_uid == os.geteuid():
        shutil.rmtree(directory)


def _outside_path(home: Home) -> Path:
    return Path("/var/tmp") / f"venture-{home.digest}"  # noqa: S108 - its users check whose it is
