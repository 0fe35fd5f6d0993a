"""From a queue's URL to what can be moved."""

from collections.abc import Callable

from pinq.queue.sql import SqlQueue
from pinq.queue.sql_transfer import SqlTransfer
from pinq.queue.transfer import Transferable
from pinq.queue.urls import open_queue


def open_transfer(
    url: str, *, create: bool = True, clock: Callable[[], int] | None = None
) -> Transferable:
    """Open the queue at ``url`` to be moved; close its ``queue`` afterwards.

    Arguments and errors are those of :func:`pinq.queue.urls.open_queue`.
    """
    queue = open_queue(url, create=create, clock=clock)
    if isinstance(queue, SqlQueue):
        return SqlTransfer(queue)
    # Not above: it needs the driver.
    from pinq.queue.redis.queue import RedisQueue
    from pinq.queue.redis.transfer import RedisTransfer

    assert isinstance(queue, RedisQueue)
    return RedisTransfer(queue)
