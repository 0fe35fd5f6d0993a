"""A dramatiq broker over pinq's queue.

:class:`QueueBroker` serves *ordinary actors*, each message of which is one job, and *batch
actors*, whose message is a whole lease of jobs, a :class:`Batch`.
"""

from pinq.broker.batches import Batch
from pinq.broker.broker import QueueBroker

__all__ = ["Batch", "QueueBroker"]
