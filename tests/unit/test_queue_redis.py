"""What of the queue on Redis needs no server: its scripts' parts, patterns, URLs, troubles.

The scripts themselves run on a real server only: fakeredis has no `cmsgpack`.
"""

import re
from pathlib import Path

import pytest
from redis import exceptions

import pinq.queue.redis
from pinq.errors import ConfigError, QueueError, QueueUnavailable, StorageFull
from pinq.queue.redis.filters import pieces
from pinq.queue.redis.queue import open_redis
from pinq.queue.redis.scripts import script
from pinq.queue.redis.troubles import explained

LUA = {path.stem: path.read_text() for path in Path(pinq.queue.redis.__path__[0]).glob("*.lua")}


def parts(text: str) -> list[str]:
    first = re.match(r"-- with: (.*)", text)
    return first[1].split() if first else []


def test_every_file_is_a_script_or_part_of_one() -> None:
    used = {part for text in LUA.values() for part in parts(text)} | {"prelude"}
    assert used <= LUA.keys()
    scripts = LUA.keys() - used
    python = "".join(p.read_text() for p in Path(pinq.queue.redis.__path__[0]).glob("*.py"))
    assert {name for name in scripts if f'"{name}"' not in python} == set()


def test_a_script_begins_with_the_prelude_and_what_it_is_written_with() -> None:
    text = script("exchange")
    order = [text.index(LUA[name]) for name in ("prelude", *parts(LUA["exchange"]), "exchange")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (b"", [b"^$"]),
        (b"*", [b"^", b"$"]),
        (b"ab", [b"^ab$"]),
        (b"a*b", [b"^a", b"b$"]),
        (b"*a?*", [b"^", b"a.", b"$"]),
        (b"50%.$", [b"^50%%%.%$$"]),
        (b"\x00\xff[", [b"^%z\xff%[$"]),
    ],
)
def test_a_pattern_becomes_pieces_that_need_no_backtracking(
    pattern: bytes, expected: list[bytes]
) -> None:
    assert pieces(pattern) == expected


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://host/0?colour=red", "colour"),
        ("redis://host/0?ssl_ca_certs=x", "rediss"),
        ("redis://host/0?timeout_seconds=soon", "timeout_seconds"),
        ("redis://host/0?timeout_seconds=0", "above zero"),
        ("redis://host/0?prefix={a}", "brace"),
        ("redis://host:port/0", "redis://"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        open_redis(url)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (exceptions.ConnectionError("refused"), QueueUnavailable, "is Redis running"),
        (exceptions.ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED]"), ConfigError, "ca_certs"),
        (exceptions.TimeoutError("slow"), QueueUnavailable, "timeout_seconds"),
        (exceptions.BusyLoadingError("reading"), QueueUnavailable, "try again soon"),
        (exceptions.ReadOnlyError("replica"), QueueUnavailable, "primary"),
        (exceptions.ResponseError("CLUSTERDOWN Hash slot"), QueueUnavailable, "recovered"),
        (exceptions.AuthenticationError("wrong"), ConfigError, "password"),
        (exceptions.NoPermissionError("no"), ConfigError, "allowed"),
        (exceptions.ResponseError("DB index is out of range"), ConfigError, "too large"),
        (exceptions.OutOfMemoryError("command not allowed"), StorageFull, "maxmemory"),
        # As Redis 6.2 tells of a command in a script.
        (exceptions.ResponseError("Error running script: 1: -OOM not"), StorageFull, "maxmemory"),
        (exceptions.ResponseError("MISCONF Errors writing"), StorageFull, "disk"),
        (exceptions.ResponseError("unknown command"), QueueError, "unknown command"),
    ],
)
def test_an_error_says_where_and_what_to_do(
    error: exceptions.RedisError, kind: type[Exception], said: str
) -> None:
    told = explained("redis://host:6379/0", error)
    assert type(told) is kind
    assert said in str(told) and "redis://host:6379/0" in str(told)
