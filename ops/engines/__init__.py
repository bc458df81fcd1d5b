"""PostgreSQL, RabbitMQ and Redis for tests: three throw-away servers behind one context manager.

    with start_engines(vhosts=["test0", "test1"]) as engines:
        engines.postgres_url("postgres"), engines.amqp_url("test0"), engines.redis_url()

They end with the block, and also when the process that opened it dies in any way.
"""

from ops.engines.session import Engines, start_engines

__all__ = ["Engines", "start_engines"]
