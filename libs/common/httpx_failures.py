"""What a call by httpx fails with when there is no answer; `httpx.HTTPError` alone is not all of it."""

from typing import Final

import httpx

# When the peer goes in the very moment in which a connection to it is made, the backend asks a socket that is no more
# for its address: `'NoneType' object has no attribute 'getpeername'`. Six times in 40 s of kills under load.
HTTPX_FAILURES: Final = (httpx.HTTPError, AttributeError)
