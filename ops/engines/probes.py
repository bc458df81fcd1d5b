"""Asking an engine, in its own protocol, whether it serves yet. None means yes; a text says why not."""

import socket
import struct
from collections.abc import Callable
from contextlib import suppress

_TIMEOUT_S = 1.0
_POSTGRES_PROTOCOL = 3 << 16
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


def postgres_answers(port: int, user: str) -> Callable[[], str | None]:
    """A server that asks for a password takes connections; one that still recovers answers with an error instead."""
    parameters = f"user\0{user}\0database\0postgres\0\0".encode()
    greeting = struct.pack("!ii", 8 + len(parameters), _POSTGRES_PROTOCOL) + parameters

    def probe() -> str | None:
        answer = _exchange(port, greeting)
        return None if answer[:1] == b"R" else _reason(answer.replace(b"\0", b" "))

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
