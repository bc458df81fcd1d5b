"""The peer of `bench.metering_consumer`: the same work in a FastStream subscriber, in an environment of its own.

Its interpreter has FastStream and the driver that goes with it; whatever else the work needs comes from the project's
environment. One transaction a message, with the inbox row first and the acknowledgement after the commit, as FastStream
users write it.
"""

import asyncio
import importlib
import os
import sys
from typing import Any, Final

PREFETCH: Final = 16


async def main() -> None:
    sys.path.append(os.environ["PROJECT_PACKAGES"])  # before anything of ours: only FastStream's own packages are here
    from libs.common import database as db  # noqa: PLC0415
    from libs.common import inbox, outbox  # noqa: PLC0415
    from libs.common.broker import open_publisher  # noqa: PLC0415
    from libs.common.events import Envelope  # noqa: PLC0415
    from libs.common.events.agents import RunFinished  # noqa: PLC0415
    from libs.common.plans import load_plans  # noqa: PLC0415
    from services.metering import consumers  # noqa: PLC0415

    faststream: Any = importlib.import_module("faststream")
    rabbit: Any = importlib.import_module("faststream.rabbit")
    plans = load_plans()
    channel = rabbit.Channel(prefetch_count=PREFETCH)
    broker = rabbit.RabbitBroker(os.environ["AMQP_URL"], default_channel=channel, logger=None)
    queue = rabbit.RabbitQueue(os.environ["QUEUE"], declare=False)
    async with (
        db.connect(os.environ["DATABASE_URL"], application_name="venture-metering") as database,
        open_publisher(os.environ["AMQP_URL"], name="metering") as publisher,
    ):

        async def on_run_finished(body: bytes) -> None:
            event = RunFinished.from_envelope(Envelope.parse(body))
            async with database.transaction() as conn:
                if await inbox.claim(conn, [event]):
                    await consumers.on_run_finished(event, conn, plans=plans)

        async def undecoded(message: Any) -> bytes:
            return message.body

        subscriber = broker.subscriber(queue, ack_policy=faststream.AckPolicy.NACK_ON_ERROR, decoder=undecoded)
        subscriber(on_run_finished)
        async with asyncio.TaskGroup() as group:  # what was settled is told to others in both
            relay = group.create_task(outbox.Relay(database, publisher, source="metering").run())
            await faststream.FastStream(broker, logger=None).run()
            relay.cancel()


if __name__ == "__main__":
    asyncio.run(main())
