"""One Redis server: its connections and its scripts.

The URL is ``redis://[[user]:password@]host[:port][/database]``, or ``rediss://`` for TLS;
``redis+cluster://`` and ``rediss+cluster://`` name any node of a cluster. Its query may set
``timeout_seconds`` (10: so long a reply is waited for), ``prefix`` (``pinq``: what all keys
begin with) and, for TLS, ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile`` and
``ssl_cert_reqs``.

Nothing is sent twice: a command whose reply was lost may have been carried out.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

import msgpack  # type: ignore[import-untyped]
import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.commands.core import Script
from redis.retry import Retry

from pinq.errors import ConfigError, QueueError
from pinq.queue.redis.scripts import script
from pinq.queue.redis.troubles import explained

logger = logging.getLogger(__name__)

_OLDEST = (6, 2)
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
# Addresses whose settings have been complained of.
_warned: set[str] = set()


class RedisServer:
    """Commands and scripts, whose arguments and replies are msgpack.

    Attributes:
        address: for messages; without the password.
        client: whose errors are not translated.
        channel: where scripts tell that they have changed something.
        prefix: what all keys begin with.

    Raises:
        ConfigError: the URL, or the password in it, is wrong.
        QueueUnavailable: it cannot be reached.
        QueueError: it is too old.
    """

    def __init__(self, url: str, clock: Callable[[], int] | None) -> None:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.prefix = options.pop("prefix", "pinq")
        self._clock = clock
        if "{" in self.prefix or "}" in self.prefix:
            raise ConfigError(f"queue: prefix={self.prefix} holds a brace, which chooses slots")
        seconds = _seconds(options.pop("timeout_seconds", "10"))
        for name in options:
            if not parts.scheme.startswith("rediss") or name not in _TLS_OPTIONS:
                raise ConfigError(
                    f"queue: unknown option {name!r}; Redis takes timeout_seconds and prefix, "
                    f"and rediss:// {', '.join(_TLS_OPTIONS)}"
                )
        scheme, mark, _ = parts.scheme.partition("+cluster")
        kind: Any = RedisCluster if mark else redis.Redis
        try:
            self.client: redis.Redis = kind.from_url(
                urlunsplit(parts._replace(scheme=scheme, query="")),
                socket_timeout=seconds,
                socket_connect_timeout=seconds,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                **options,
            )
            host, port = parts.hostname or "localhost", parts.port or 6379
        except ValueError as error:
            raise ConfigError(
                f"queue: {error}; a Redis is redis://[:password@]host[:port][/database]"
            ) from None
        except exceptions.RedisError as error:  # only a cluster is connected to already
            raise explained(f"{parts.scheme}://{parts.hostname}:{parts.port}", error) from error
        database = parts.path.strip("/") or "0"
        self.address = f"{parts.scheme}://{host}:{port}/{database}"
        # Channels know no databases.
        self.channel = f"{self.prefix}:bell:{database}"
        self._scripts: dict[str, Script] = {}
        self._check()

    # --- keys -----------------------------------------------------------------

    def key(self, queue: str) -> str:
        """The key of a queue, of which its scripts make all others.

        The name in braces is what Redis Cluster chooses a slot by. It must not be empty, nor
        hold a brace.
        """
        return f"{self.prefix}:{{{quote(queue, safe=' !#$&+,/:;=?@') or '%'}}}:queue"

    def key_of(self, queue: str, name: str) -> str:
        """Another key of a queue."""
        return self.key(queue).removesuffix("queue") + name

    @property
    def registry(self) -> str:
        """The key of the names of queues, and of those whose events outlive them."""
        return f"{self.prefix}:queues"

    @property
    def roles(self) -> str:
        """The key of the roles and their holders."""
        return f"{self.prefix}:roles"

    # --- calls ----------------------------------------------------------------

    def run(self, name: str, key: str, *arguments: Any) -> Any:
        """Run a script and return its reply, in which every string is bytes."""
        now = self._clock() if self._clock else ""
        args = [now, self.channel, packed(arguments)]
        with self.translated():
            reply: Any = self._script(name)(keys=[key], args=args)
        return msgpack.unpackb(reply, raw=True)

    def now_ms(self) -> int:
        """The clock that was given, or the server's."""
        if self._clock:
            return self._clock()
        with self.translated():
            seconds, microseconds = self._time()
        return int(seconds * 1000 + microseconds // 1000)

    def close(self) -> None:
        self.client.close()

    def _time(self) -> tuple[int, int]:
        answer: Any = self.client.time()
        return answer[0], answer[1]

    def _script(self, name: str) -> Script:
        if name not in self._scripts:
            self._scripts[name] = self.client.register_script(script(name))
        return self._scripts[name]

    # --- its settings ---------------------------------------------------------

    def _check(self) -> None:
        """See that the server will do; warn once of settings that lose jobs."""
        with self.translated():
            self.client.ping()
            try:
                info: Any = self.client.info()
            except exceptions.ResponseError:
                return  # not allowed, as some managed services have it; the queue can do without
        version = str(info.get("redis_version", ""))
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < _OLDEST:
            raise QueueError(f"{self.address} is Redis {version}; pinq needs 6.2 or later")
        if self.address in _warned:
            return
        _warned.add(self.address)
        if info.get("aof_enabled") == 0:
            logger.warning(
                "queue.no_append_only_file address=%s a restart loses jobs: "
                "set `appendonly yes` on the server",
                self.address,
            )
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and not policy.startswith("volatile-"):
            logger.warning(
                "queue.evicts address=%s maxmemory_policy=%s jobs are lost when memory is short: "
                "set `maxmemory-policy noeviction` on the server",
                self.address,
                policy,
            )

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the driver's errors into pinq's."""
        try:
            yield
        except exceptions.RedisError as error:
            raise explained(self.address, error) from error


def packed(value: Any) -> bytes:
    """In msgpack as the server's Lua knows it, which has one type for text and bytes."""
    found: bytes = msgpack.packb(value, use_bin_type=False, unicode_errors="surrogatepass")
    return found


def unpacked(raw: bytes) -> Any:
    """What ``packed`` made of a value that holds no bytes."""
    return msgpack.unpackb(raw, unicode_errors="surrogatepass")


def _seconds(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0
    if not seconds > 0:
        raise ConfigError(f"queue: timeout_seconds={given} is not a number above zero")
    return seconds
