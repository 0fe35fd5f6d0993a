"""What goes wrong with a Redis server, and what to do about it."""

import re

from redis import exceptions

from pinq.errors import ConfigError, PinqError, QueueError, QueueUnavailable, StorageFull

# What a server says that will do again by itself.
_PASSING = {"NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "MASTERDOWN"}


def explained(address: str, error: exceptions.RedisError) -> PinqError:
    """An error of the driver's as pinq's, which says what to do next."""
    said = f"{address}: {error}"
    told = set(re.findall(r"[A-Z]{3,}", str(error)))
    if isinstance(error, exceptions.AuthenticationError) or told & {"NOAUTH", "WRONGPASS"}:
        return ConfigError(f"{said}; put the password into the queue's URL: redis://:password@host")
    if isinstance(error, exceptions.NoPermissionError):
        return ConfigError(f"{said}; docs/guide/redis.md lists what the user must be allowed")
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM" in told:
        return StorageFull(
            f"{said}: nothing of this step was kept. Raise `maxmemory`, or prune jobs"
        )
    if "MISCONF" in told:
        return StorageFull(
            f"{said}: nothing of this step was kept. Free some space on the server's disk"
        )
    if isinstance(error, exceptions.BusyLoadingError):
        return QueueUnavailable(f"{said}; it reads its data after a start: try again soon")
    if isinstance(error, exceptions.TimeoutError):
        return QueueUnavailable(
            f"{said}; if the server is up, see `redis-cli --latency` and "
            "`SLOWLOG GET`, or raise timeout_seconds in the queue's URL"
        )
    if "CERTIFICATE" in told:
        return ConfigError(f"{said}; name the authority by ssl_ca_certs in the queue's URL")
    if isinstance(error, exceptions.ConnectionError):
        return QueueUnavailable(
            f"{said}; is Redis running, and is the queue's URL right? "
            f"`redis-cli -u {address} ping` tells"
        )
    if isinstance(error, exceptions.ReadOnlyError) or "READONLY" in told:
        return QueueUnavailable(f"{said}; this is a replica: the queue's URL must name a primary")
    if told & _PASSING:
        return QueueUnavailable(f"{said}; try again when the server has recovered")
    if "DB index" in said:
        return ConfigError(f"{said}; the number that ends the queue's URL is too large")
    return QueueError(said)
