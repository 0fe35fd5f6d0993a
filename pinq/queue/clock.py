"""The machine's clock: the queue's own where it is embedded."""

import time


def machine_clock() -> int:
    """This machine's time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
