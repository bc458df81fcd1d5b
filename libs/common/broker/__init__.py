"""RabbitMQ: the only package that imports its driver. Publish and consume use separate connections.

A connection that publishes is frozen by a memory or disk alarm, and would freeze our acks with it.
"""

from libs.common.broker.consumer import Consumer, QueueState
from libs.common.broker.lane import Handler, ManyHandler, Subscription
from libs.common.broker.parked import ParkedMessage, ParkedMessages
from libs.common.broker.publisher import BrokerPublisher, BrokerUnavailable, open_publisher
from libs.common.broker.topology import RETRY_DELAYS_S, home_exchange, parked_queue, queue_name, retry_exchange

__all__ = [
    "RETRY_DELAYS_S",
    "BrokerPublisher",
    "BrokerUnavailable",
    "Consumer",
    "Handler",
    "ManyHandler",
    "ParkedMessage",
    "ParkedMessages",
    "QueueState",
    "Subscription",
    "home_exchange",
    "open_publisher",
    "parked_queue",
    "queue_name",
    "retry_exchange",
]
