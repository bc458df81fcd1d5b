"""Server-sent events on the wire (WHATWG HTML, section 9.2)."""

from collections.abc import AsyncIterable
from typing import Any, Final

import orjson
from starlette.responses import StreamingResponse

HEARTBEAT: Final = b": still here\n\n"
HEARTBEAT_S: Final = 15.0


def frame(*, event: str, data: Any, event_id: str) -> bytes:
    """One event; JSON has no raw line breaks, so one data line is always enough."""
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id.encode(), event.encode(), orjson.dumps(data, default=str))


def stream(frames: AsyncIterable[bytes]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(frames, media_type="text/event-stream", headers=headers)
