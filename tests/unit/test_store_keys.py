"""The bytes of keys and values."""

import msgpack
import pytest

from pinq.errors import InvalidInput, StoreCorrupt
from pinq.store import keys
from pinq.store.contract import SignalKey, SignalValue

KEY = SignalKey("pins", "pdq", 258, "ab.c-1")
VALUE = SignalValue("uint8", (2, 2), b"\x00\x01\xfe\xff", 1_700_000_000_123, {"quality": 97})


def test_a_key_lies_as_the_design_says() -> None:
    assert keys.encode_key(KEY) == b"pins\0pdq\0\x00\x00\x01\x02ab.c-1"


@pytest.mark.parametrize("version", [0, 1, 255, 256, 2**32 - 1])
def test_a_key_comes_back_whatever_bytes_its_version_has(version: int) -> None:
    key = SignalKey("g", "s", version, "0" * 128)
    assert keys.decode_key(keys.encode_key(key)) == key


def test_keys_sort_by_galaxy_then_signal_then_version_then_signature() -> None:
    ordered = [
        SignalKey("a", "pdq", 1, "zz"),
        SignalKey("a", "pdq", 2, "aa"),
        SignalKey("a", "pdq", 2, "ab"),
        SignalKey("a", "pdq", 256, "aa"),
        SignalKey("a", "pdq2", 1, "aa"),
        SignalKey("ab", "color", 1, "aa"),
    ]
    assert sorted(ordered, key=keys.encode_key) == ordered


def test_after_a_prefix_comes_the_next_version_even_at_the_last_one() -> None:
    last = keys.version_prefix("g", "s", 2**32 - 1)
    assert last + b"\xff" * 200 < keys.after(last) <= keys.version_prefix("g", "t", 0)


@pytest.mark.parametrize(
    "key",
    [
        SignalKey("", "s", 1, "x"),
        SignalKey("g", "", 1, "x"),
        SignalKey("g", "s", 1, ""),
        SignalKey("g\0h", "s", 1, "x"),
        SignalKey("g", "s\0t", 1, "x"),
        SignalKey("g", "s", 1, "x\0y"),
        SignalKey("g", "s", -1, "x"),
        SignalKey("g", "s", 2**32, "x"),
    ],
)
def test_a_key_that_could_be_read_as_another_is_refused(key: SignalKey) -> None:
    with pytest.raises(InvalidInput):
        keys.encode_key(key)


@pytest.mark.parametrize("raw", [b"", b"nothing", b"g\0s", b"g\0s\0\x00", b"\xff\0s\0\0\0\0\1x"])
def test_bytes_that_are_no_key_are_damage(raw: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        keys.decode_key(raw)


def test_a_value_comes_back() -> None:
    assert keys.decode_value(KEY, keys.encode_value(VALUE)) == VALUE


def test_a_value_is_a_msgpack_map_that_others_can_read() -> None:
    assert msgpack.unpackb(keys.encode_value(VALUE)) == {
        "t": 1_700_000_000_123,
        "d": "uint8",
        "s": [2, 2],
        "b": b"\x00\x01\xfe\xff",
        "m": {"quality": 97},
    }


def test_a_value_with_entries_of_a_later_pinq_is_read() -> None:
    raw = msgpack.packb({**msgpack.unpackb(keys.encode_value(VALUE)), "later": 1})
    assert keys.decode_value(KEY, raw) == VALUE


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        keys.encode_value(VALUE)[:-1],
        keys.encode_value(VALUE) + b"x",
        msgpack.packb([1]),
        msgpack.packb({"t": 1, "d": "u1", "s": [1], "b": b""}),
        msgpack.packb({"t": "1", "d": "u1", "s": [1], "b": b"", "m": {}}),
        msgpack.packb({"t": 1, "d": "u1", "s": ["1"], "b": b"", "m": {}}),
        msgpack.packb({"t": 1, "d": "u1", "s": 1, "b": b"", "m": {}}),
    ],
)
def test_a_damaged_value_is_reported_with_its_key(raw: bytes) -> None:
    with pytest.raises(StoreCorrupt, match=r"pdq@258 for ab\.c-1 in galaxy pins"):
        keys.decode_value(KEY, raw)


def test_a_value_that_msgpack_cannot_carry_is_refused() -> None:
    with pytest.raises(InvalidInput):
        keys.encode_value(SignalValue("u1", (1,), b"", 0, {"x": object()}))
