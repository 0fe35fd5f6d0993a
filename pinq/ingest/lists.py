"""Lists that a person hands in: lines, JSON lines, CSV."""

import csv
import json
import os
import re
import select
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from pinq.ingest.items import BadItem, Item, item_of

_MAX_LINE_BYTES = 64 * 1024  # a path is at most 4 KiB; escaped in a URI, 12 KiB


class Lines(Protocol):
    """What a list is read from: any binary file, or a :class:`LineReader`."""

    def readline(self, size: int, /) -> bytes: ...


class LineReader:
    """The lines of a file descriptor, which can tell whether the next one is there yet.

    Whoever feeds a list line by line (``inotifywait -m … | pinq enqueue --from -``)
    wants each line enqueued when it comes, not when a batch is full.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = b""
        self._start = 0
        self._ended = False

    def readline(self, size: int, /) -> bytes:
        while True:
            end = self._held.find(b"\n", self._start, self._start + size)
            if end >= 0:
                return self._take(end + 1 - self._start)
            if self._ended or len(self._held) - self._start >= size:
                return self._take(size)
            chunk = os.read(self._descriptor, 64 * 1024)
            self._ended = not chunk
            self._held = self._held[self._start :] + chunk
            self._start = 0

    def idle(self, seconds: float) -> bool:
        """Whether no whole line is at hand, nor any byte to come within ``seconds``."""
        if self._ended or self._held.find(b"\n", self._start) >= 0:
            return False
        return not select.select([self._descriptor], [], [], seconds)[0]

    def _take(self, size: int) -> bytes:
        line = self._held[self._start : self._start + size]
        self._start += len(line)
        return line


def read_list(stream: Lines, name: str) -> Iterator[Item | BadItem]:
    """The items of a list: lines of paths or URIs, JSON lines, or CSV.

    Told apart by the first line that is not blank: a JSON object; or a CSV
    header with ``uri``, ``signature`` or both (other columns are ignored); or
    else plain lines. A byte order mark, CRLF and blank lines are taken in
    stride; bytes of a path that are not UTF-8 are kept. A bad line is reported
    under its number, and the good ones go on.
    """
    source = _Source(stream, name)
    for _, raw in source:
        text = raw.strip()
        if not text:
            continue
        source.push_back()
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw[:64]:
            yield BadItem("", "is not a list in UTF-8 text", source.name)
            return
        if re.match(rb'\{\s*["}]', text):
            yield from _json_lines(source)
        elif (columns := _csv_header(raw)) is not None:
            yield from _csv(source, columns)
        else:
            yield from _plain(source)
        return


class _Source:
    """Numbered lines without their ends; some can be pushed back."""

    def __init__(self, stream: Lines, name: str) -> None:
        self.name = name
        self._stream = stream
        self._number = 0
        self._again: deque[tuple[int, bytes]] = deque()
        self._last = (0, b"")

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return self

    def __next__(self) -> tuple[int, bytes]:
        if self._again:
            self._last = self._again.popleft()
            return self._last
        raw = self._stream.readline(_MAX_LINE_BYTES)
        if not raw:
            raise StopIteration
        self._number += 1
        if len(raw) == _MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while (rest := self._stream.readline(_MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            # Longer than any line that could be used; what is left of it is refused as such.
            self._last = (self._number, raw)
            return self._last
        if self._number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        self._last = (self._number, raw.removesuffix(b"\n").removesuffix(b"\r"))
        return self._last

    def push_back(self, lines: Iterable[tuple[int, bytes]] | None = None) -> None:
        self._again.extendleft(reversed([self._last] if lines is None else list(lines)))

    def origin(self, number: int) -> str:
        return f"{self.name}:{number}"

    def bad(self, number: int, reason: str, raw: bytes) -> BadItem:
        shown = os.fsdecode(raw)
        return BadItem(
            shown if len(shown) <= 120 else shown[:117] + "…", reason, self.origin(number)
        )


def _too_long(raw: bytes) -> bool:
    return len(raw) >= _MAX_LINE_BYTES


_LONG = f"is longer than {_MAX_LINE_BYTES // 1024} KiB"


def _plain(source: _Source) -> Iterator[Item | BadItem]:
    for number, raw in source:
        if _too_long(raw):
            yield source.bad(number, _LONG, raw)
        elif b"\0" in raw:
            yield source.bad(number, "holds a NUL byte", raw)
        elif raw.strip():
            yield Item(os.fsdecode(raw), origin=source.origin(number))


def _json_lines(source: _Source) -> Iterator[Item | BadItem]:
    for number, raw in source:
        if not raw.strip():
            continue
        if _too_long(raw):
            yield source.bad(number, _LONG, raw)
            continue
        try:
            record = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError:
            yield source.bad(number, "is not UTF-8", raw)
        except json.JSONDecodeError as error:
            yield source.bad(number, f"is not JSON: {error.msg} (column {error.colno})", raw)
        except (ValueError, RecursionError) as error:
            yield source.bad(number, f"is not JSON: {error}", raw)
        else:
            item = item_of(record, source.origin(number))
            yield item if isinstance(item, Item) else source.bad(number, item, raw)


def _csv_header(raw: bytes) -> dict[str, int] | None:
    """The places of the columns, if this is a header that names one of ours."""
    try:
        names = [name.strip().lower() for name in next(csv.reader([os.fsdecode(raw)], strict=True))]
    except (csv.Error, StopIteration):
        return None
    columns: dict[str, int] = {
        name: names.index(name) for name in ("uri", "signature") if name in names
    }
    return columns or None


def _csv(source: _Source, columns: dict[str, int]) -> Iterator[Item | BadItem]:
    next(source)  # the header
    needed = max(columns.values()) + 1
    for number, raw in source:
        if not raw.strip():
            continue
        # A quoted field may hold line ends. Read on while a quote is open, but not
        # for ever: after a stray quote the lines behind it are read on their own.
        lines = [(number, raw)]
        size = len(raw)
        row: list[str] | None = None
        reason = _LONG
        while not _too_long(raw) and size < _MAX_LINE_BYTES:
            if b'"' in lines[-1][1] or len(lines) == 1:
                try:
                    text = os.fsdecode(b"\n".join(line for _, line in lines))
                    row = next(csv.reader([text], strict=True))
                    break
                except csv.Error as error:
                    reason = f"is not CSV: {error}"
                    if "unexpected end of data" not in str(error):
                        break
                    reason = "is not CSV: a quote is never closed"
            following = next(source, None)
            if following is None:
                break
            lines.append(following)
            size += len(following[1]) + 1
        if row is None:
            source.push_back(lines[1:])
            yield source.bad(number, reason, raw)
            continue
        if len(row) < needed:
            yield source.bad(number, f"has {len(row)} of {needed} columns", raw)
            continue
        record = {name: row[place] for name, place in columns.items()}
        if "signature" in record:
            record["signature"] = record["signature"].strip()
        item = item_of(record, source.origin(number))
        yield item if isinstance(item, Item) else source.bad(number, item, raw)
