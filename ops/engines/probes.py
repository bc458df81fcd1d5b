"""Asking an engine, in its own protocol, whether it serves yet. None means yes; a text says why not."""

import socket
from collections.abc import Callable
from contextlib import suppress

_TIMEOUT_S = 1.0
_AMQP_GREETING = b"AMQP\x00\x00\x09\x01"
_START_METHOD = 1  # the frame type with which a broker answers the greeting


def redis_answers(port: int, user: str, password: str) -> Callable[[], str | None]:
    def probe() -> str | None:
        answer = _exchange(port, f"AUTH {user} {password}\r\nPING\r\n".encode())
        return None if b"+PONG" in answer else _reason(answer)

    return probe


def broker_answers(port: int) -> Callable[[], str | None]:
    """The broker opens its listener only after vhosts, users and queues are in place."""

    def probe() -> str | None:
        answer = _exchange(port, _AMQP_GREETING)
        return None if answer[:1] == bytes([_START_METHOD]) else _reason(answer)

    return probe


def port_answers(port: int) -> Callable[[], str | None]:
    def probe() -> str | None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), _TIMEOUT_S):
            return None
        return f"nothing listens on port {port} yet"

    return probe


def postgres_answers(url: str) -> Callable[[], str | None]:
    def probe() -> str | None:
        import psycopg  # noqa: PLC0415 - slow to import, and needed by few of the commands

        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError as error:
            return str(error).splitlines()[-1]
        return None

    return probe


def _exchange(port: int, request: bytes) -> bytes:
    """Send one request and take the first answer; empty when there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as connection:
            connection.sendall(request)
            answer = connection.recv(4096)
            while answer.startswith(b"+OK\r\n") and len(answer) <= len(b"+OK\r\n"):
                answer += connection.recv(4096)
            return answer
    except OSError:
        return b""


def _reason(answer: bytes) -> str:
    return answer.decode(errors="replace").strip() or "no answer yet"
