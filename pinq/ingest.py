"""What a person names (paths, folders, globs, lists) → signed items to enqueue.

Everything streams: a folder of ten million files or a list as long costs the
memory of one directory, one line, and a bounded look-ahead. What cannot be
used becomes a :class:`BadItem` in its place, and the rest goes on.
"""

import csv
import glob
import hashlib
import json
import os
import re
import select
import stat
import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pinq.errors import PinqError
from pinq.media.fetch import etag_of, path_to_uri, uri_to_path
from pinq.queue.model import NewJob

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

SIGNATURE = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_REMOTE = ("http", "https", "s3")
_CHUNK_BYTES = 1024 * 1024
_MAX_LINE_BYTES = 64 * 1024  # a path is at most 4 KiB; escaped in a URI, 12 KiB
_TOGETHER = 16  # items that one hashing thread takes at a time


@dataclass(frozen=True, slots=True)
class Item:
    """Something to enqueue: a path or URI (``source``), or a signature, or both.

    ``origin`` says where it was read, such as ``list.csv:12``.
    """

    source: str
    signature: str | None = None
    origin: str = ""


@dataclass(frozen=True, slots=True)
class BadItem:
    """Something that cannot be enqueued, and why."""

    source: str
    reason: str
    origin: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.origin, self.source, self.reason) if part)


@dataclass(frozen=True, slots=True)
class Signed:
    """The identity of a file's bytes, and what a cheap look at the file said then."""

    signature: str
    etag: str


@dataclass(frozen=True, slots=True)
class Ready:
    """An item with everything a job needs; fields as in :class:`~pinq.queue.model.NewJob`."""

    signature: str
    uri: str
    verify: bool = False
    etag: str = ""

    def job(self, *, priority: int, max_attempts: int, run_at_ms: int = 0) -> NewJob:
        return NewJob(
            key=self.signature,
            uri=self.uri,
            verify=self.verify,
            etag=self.etag,
            priority=priority,
            run_at_ms=run_at_ms,
            max_attempts=max_attempts,
        )


# --- paths, folders, globs -----------------------------------------------------


def discover(
    paths: Iterable[str | Path], *, formats: Collection[str] = tuple(EXTENSIONS)
) -> Iterator[Path | BadItem]:
    """The image files that ``paths`` name.

    A file is taken whatever it is called. A folder is read to its depths, in
    the order of its names, for files with the extension of one of ``formats``;
    hidden entries are skipped, and a link back to a folder above it is not
    followed. A pattern that the shell did not expand is expanded.
    """
    extensions = {suffix for name in formats for suffix in EXTENSIONS[name]}
    for path in paths:
        text = os.fspath(path)
        found = _local(text)
        if isinstance(found, BadItem):
            yield found
            continue
        kind = _kind(found)
        if kind is None and glob.has_magic(str(found)):
            # glob, not Path.glob: hidden names follow the shell's rules.
            matches = sorted(glob.iglob(str(found), recursive=True), key=os.fsencode)  # noqa: PTH207
            if not matches:
                yield BadItem(text, "matches nothing")
            for match in map(Path, matches):
                yield from _named(match, _kind(match), extensions)
        else:
            yield from _named(found, kind, extensions)


def _local(text: str) -> Path | BadItem:
    if text.startswith("file:"):
        try:
            return uri_to_path(text)
        except (PinqError, ValueError) as error:
            return BadItem(text, str(error))
    if (match := _SCHEME.match(text)) and _kind(Path(text)) is None:
        return BadItem(
            text,
            f"the bytes of {match[1]}: are not at hand to be signed; "
            "name it in a list with a signature (--from)",
        )
    if not text:
        return BadItem(text, "an empty path")
    return Path(text)


def _kind(path: Path) -> int | str | None:
    """The file's type bits; None when there is no such file; words when it cannot be told."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return None
    except ValueError:
        return "holds a NUL byte"
    except OSError as error:
        return _words(error)


def _named(path: Path, kind: int | str | None, extensions: set[str]) -> Iterator[Path | BadItem]:
    if kind == stat.S_IFDIR:
        yield from _folder(path, extensions)
    elif kind == stat.S_IFREG:
        yield path
    elif kind is None:
        broken = " (a broken link)" if path.is_symlink() else ""
        yield BadItem(str(path), f"no such file or folder{broken}")
    else:
        yield BadItem(str(path), kind if isinstance(kind, str) else "is not a regular file")


def _folder(root: Path, extensions: set[str]) -> Iterator[Path | BadItem]:
    seen: set[tuple[int, int]] = set()
    nothing = True
    # A stack of open levels, not recursion: trees may be deeper than Python's stack.
    levels: list[Iterator[os.DirEntry[str]]] = []

    def enter(folder: str) -> BadItem | None:
        try:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as entries:
                    visible = [entry for entry in entries if not entry.name.startswith(".")]
                visible.sort(key=lambda entry: os.fsencode(entry.name))
                levels.append(iter(visible))
        except OSError as error:
            return BadItem(folder, _words(error))
        return None

    bad = enter(str(root))
    if bad is not None:
        yield bad
        return
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            continue
        try:
            if entry.is_dir():
                bad = enter(entry.path)
            elif Path(entry.name).suffix.lower() not in extensions:
                continue
            elif entry.is_file():
                nothing = False
                yield Path(entry.path)
                continue
            elif Path(entry.path).exists():
                bad = BadItem(entry.path, "is not a regular file")
            else:
                bad = BadItem(entry.path, "no such file (a broken link)")
        except OSError as error:
            bad = BadItem(entry.path, _words(error))
        if bad is not None:
            nothing = False
            yield bad
    if nothing:
        yield BadItem(str(root), f"holds no images (looked for {' '.join(sorted(extensions))})")


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


# --- lists -----------------------------------------------------------------------


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


def item_of(record: Any, origin: str = "") -> Item | str:
    """The item that a mapping with ``uri`` and ``signature`` describes, or what is wrong."""
    if not isinstance(record, dict):
        return 'is not an object like {"uri": …, "signature": …}'
    uri, signature = record.get("uri"), record.get("signature")
    if uri is not None and not isinstance(uri, str):
        return "uri is not a string"
    if signature is not None and not isinstance(signature, str):
        return "signature is not a string"
    if not uri and not signature:
        return "has neither uri nor signature"
    return Item(uri or "", signature or None, origin)


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


# --- signatures ------------------------------------------------------------------

_buffers = threading.local()


def sign(path: Path, chunk: int = _CHUNK_BYTES) -> Signed | BadItem:
    """The 128-bit BLAKE2b of the file's bytes, in hex, with the etag they had."""
    buffer: bytearray | None = getattr(_buffers, "buffer", None)
    if buffer is None or len(buffer) != chunk:
        buffer = _buffers.buffer = bytearray(chunk)
    view = memoryview(buffer)
    try:
        # O_NONBLOCK so that a FIFO does not block; it is refused below.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        return BadItem(str(path), "holds a NUL byte")
    except OSError as error:
        return BadItem(str(path), _words(error))
    try:
        before = os.fstat(descriptor)
        if stat.S_ISDIR(before.st_mode):
            return BadItem(str(path), "is a folder")
        if not stat.S_ISREG(before.st_mode):
            return BadItem(str(path), "is not a regular file")
        digest = hashlib.blake2b(digest_size=16)
        while length := os.readv(descriptor, [view]):
            digest.update(view[:length])  # frees the GIL
        etag = etag_of(before)
        if etag_of(os.fstat(descriptor)) != etag:
            return BadItem(str(path), "changed while it was read; enqueue it once it is whole")
        return Signed(digest.hexdigest(), etag)
    except OSError as error:
        return BadItem(str(path), _words(error))
    finally:
        os.close(descriptor)


def prepare(
    items: Iterable[Item | Path | BadItem], *, media: str | None = None, threads: int = 2
) -> Iterator[Ready | BadItem]:
    """Each item with a signature and an absolute URI, or what is wrong with it; in order.

    Files without a signature are hashed, in ``threads`` threads and a bounded
    look-ahead when there are many. ``media`` is the pipeline's template for
    items that bring a signature and no URI.
    """
    source = iter(items)
    ahead: deque[list[Ready | BadItem] | Future[list[Ready | BadItem]]] = deque()
    pool: Executor | None = None
    try:
        while chunk := list(islice(source, _TOGETHER)):
            resolved = [_resolve(item, media) for item in chunk]
            unsigned = sum(isinstance(each, _Unsigned) for each in resolved)
            if unsigned <= 1 or len(chunk) < _TOGETHER or threads < 2:
                ahead.append(_sign_each(resolved))
            else:
                if pool is None:
                    from concurrent.futures import ThreadPoolExecutor

                    pool = ThreadPoolExecutor(threads, "pinq-sign")
                ahead.append(pool.submit(_sign_each, resolved))
            while len(ahead) > 2 * threads:
                yield from _outcome(ahead.popleft())
        while ahead:
            yield from _outcome(ahead.popleft())
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Unsigned:
    path: Path
    origin: str


def _outcome(
    done: "list[Ready | BadItem] | Future[list[Ready | BadItem]]",
) -> list[Ready | BadItem]:
    return done if isinstance(done, list) else done.result()


def _resolve(item: Item | Path | BadItem, media: str | None) -> Ready | _Unsigned | BadItem:
    if isinstance(item, BadItem):
        return item
    if isinstance(item, Path):
        return _Unsigned(item, "")
    text, signature, origin = item.source, item.signature, item.origin
    if signature is not None and not SIGNATURE.match(signature):
        return BadItem(
            signature, "is no signature: 1 to 128 of A-Z a-z 0-9 . _ - are allowed", origin
        )
    if not text:
        if signature is None:
            return BadItem("", "has neither uri nor signature", origin)
        if media is None:
            return BadItem(signature, "has no uri, and its pipeline no media template", origin)
        return Ready(signature, media.replace("{signature}", signature))
    if "\0" in text:
        return BadItem(text, "holds a NUL byte", origin)
    uri = text.strip()
    try:
        if uri.startswith("file:"):
            path = uri_to_path(uri)
        elif match := _SCHEME.match(uri):
            scheme = match[1].lower()
            if scheme not in _REMOTE:
                return BadItem(text, f"{scheme}: is none of file, {', '.join(_REMOTE)}", origin)
            if signature is None:
                return BadItem(
                    text,
                    f"the bytes of {scheme}: are not at hand to be signed; "
                    "a signature column is needed",
                    origin,
                )
            if not uri.isprintable():
                return BadItem(
                    text, "holds bytes that no URI can hold; percent-encode them", origin
                )
            return Ready(signature, uri)
        else:
            path = Path(text)
        if signature is not None:
            return Ready(signature, path_to_uri(path))
        return _Unsigned(path, origin)
    except (PinqError, ValueError) as error:
        return BadItem(text, str(error), origin)


def _sign_each(resolved: list[Ready | _Unsigned | BadItem]) -> list[Ready | BadItem]:
    return [_sign_one(each) if isinstance(each, _Unsigned) else each for each in resolved]


def _sign_one(unsigned: _Unsigned) -> Ready | BadItem:
    try:
        uri = path_to_uri(unsigned.path)
    except (PinqError, ValueError) as error:
        return BadItem(str(unsigned.path), str(error), unsigned.origin)
    signed = sign(unsigned.path)
    if isinstance(signed, BadItem):
        return BadItem(signed.source, signed.reason, unsigned.origin)
    return Ready(signed.signature, uri, verify=True, etag=signed.etag)
