"""Asking a process over HTTP whether it is ready. None means yes; a text says why not."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable

_TIMEOUT_S = 2.0
# A proxy that the environment names is for the outside, not for processes on this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def open_url(request: urllib.request.Request, *, timeout_s: float = 10) -> http.client.HTTPResponse:
    return _OPENER.open(request, timeout=timeout_s)


def http_answers(url: str) -> Callable[[], str | None]:
    def probe() -> str | None:
        try:
            open_url(urllib.request.Request(url), timeout_s=_TIMEOUT_S).close()  # noqa: S310 - the URLs are our own
        except urllib.error.HTTPError as error:
            return _failing(error)
        except OSError as error:
            return f"{url} does not answer yet ({error})"
        return None

    return probe


def _failing(error: urllib.error.HTTPError) -> str:
    """Which checks fail, when the answer is a readiness report; else the status."""
    try:
        failing = [str(name) for name in json.loads(error.read(65536))["failed"]]
    except (ValueError, KeyError, TypeError):
        failing = []
    return f"not ready: {', '.join(failing)}" if failing else f"{error.url} answers {error.code}"
