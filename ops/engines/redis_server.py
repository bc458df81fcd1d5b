"""A Redis of our own: nothing on disk, one named user behind a password."""

import hashlib
from pathlib import Path

from ops.engines.packages import Programs
from ops.engines.probes import redis_answers
from ops.files import write_private
from ops.home import Home
from ops.programs import Program

USER = "venture"
# In Redis is only what may vanish: it is not saved, and the oldest goes first when memory is short.
_CONFIG = """\
bind 127.0.0.1
port {port}
save ""
appendonly no
maxmemory 256mb
maxmemory-policy allkeys-lru
user default off
user {user} on >{password} ~* &* {commands}
"""
_SERVICE_COMMANDS = "+@all -@dangerous +info"
_TEST_COMMANDS = "+@all"


def describe(home: Home, programs: Programs, *, port: int, password: str, fast: bool = False) -> Program:
    base = home.data / "redis"
    commands = _TEST_COMMANDS if fast else _SERVICE_COMMANDS
    config = _CONFIG.format(port=port, user=USER, password=password, commands=commands)
    return Program(
        name="redis-1",
        argv=(str(programs.redis), str(base / "redis.conf")),
        environment={},
        directory=base,
        probe=redis_answers(port, USER, password),
        before_start=lambda: _prepare(base, config),
        inputs=hashlib.sha256(config.encode()).hexdigest(),
    )


def _prepare(base: Path, config: str) -> None:
    base.mkdir(mode=0o700, exist_ok=True)
    write_private(base / "redis.conf", config)
