"""Take over at once what processes of this machine held when they were killed.

It would come back by itself, but only when its leases expire.
"""

import logging

from pinq.incarnation import has_died
from pinq.queue.contract import Queue

logger = logging.getLogger(__name__)


def succeed_the_dead(queue: Queue) -> None:
    """End the leases and roles of all holders that are known to have died."""
    for holder in queue.holders():
        if has_died(holder):
            expired = queue.expire(holder)
            logger.info("worker.died holder=%s leases=%d", holder, expired)
