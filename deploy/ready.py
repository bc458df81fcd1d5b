"""Health check of a container: ask the process beside it whether it is ready; what it answers is kept as the reason.

    python -IS ready.py 8000 /health/ready

Sockets alone: it is started every few seconds, and importing an HTTP client would cost more than the question.
"""

import socket
import sys

_TIMEOUT_S = 4
_MOST_BYTES = 65536


def ask(port: int, path: str) -> tuple[bool, str]:
    """Whether the answer is a 200, and its body."""
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while len(answer) < _MOST_BYTES and (part := connection.recv(_MOST_BYTES)):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return b" 200 " in head.split(b"\r\n", 1)[0], body.decode(errors="replace")


def main() -> int:
    try:
        is_ready, reason = ask(int(sys.argv[1]), sys.argv[2])
    except OSError as error:
        is_ready, reason = False, f"no answer yet ({error})"
    sys.stdout.write(reason)
    return 0 if is_ready else 1


if __name__ == "__main__":
    sys.exit(main())
