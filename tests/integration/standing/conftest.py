"""One database and one set of consumers for all standing tests: each uses users of its own."""

from collections.abc import AsyncGenerator

import pytest

from tests.harness.database import new_database
from tests.harness.servers import Servers
from tests.harness.services import Place
from tests.integration.standing.desk import Desk, open_desk


@pytest.fixture(scope="module")
async def desk(servers: Servers, worker_id: str) -> AsyncGenerator[Desk, None]:
    number = int(worker_id.removeprefix("gw")) if worker_id != "master" else 0
    async with new_database(servers) as database:
        place = Place(database=database, vhost=servers.vhosts[number], redis_number=number)
        async with open_desk(place) as opened:
            yield opened
        await place.delete_queues()
