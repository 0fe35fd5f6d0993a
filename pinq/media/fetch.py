"""URI → bytes.

``fetch()`` looks the scheme up in ``FETCHERS``: that table is the one place
where another scheme is added. Paths travel as ``file:`` URIs in ASCII, so that
a name with spaces, newlines or bytes that are no UTF-8 survives a queue, a list
and JSON unchanged (``path_to_uri``, ``uri_to_path``).
"""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pinq.config import MediaSettings
from pinq.errors import FailureClass, MediaError


@dataclass(frozen=True, slots=True)
class Fetched:
    """An image's bytes, and a short text that changes when the source does."""

    data: bytes
    etag: str


Fetcher = Callable[[str, MediaSettings], Fetched]


def fetch(uri: str, limits: MediaSettings) -> Fetched:
    """The bytes behind ``uri``, never more than ``limits.max_bytes`` of them.

    Raises:
        MediaError: ``FETCH_GONE`` where nothing is there; ``REFUSED`` for a scheme,
            host, kind of file, permission or size that is not admitted;
            ``UNDECODABLE`` for an empty file; ``FETCH_TRANSIENT`` for what may pass,
            such as an I/O error or a file that changed while it was read.
    """
    fetcher = FETCHERS.get(_scheme(uri))
    if fetcher is None:
        named = f"the scheme {_scheme(uri)}:" if _scheme(uri) else "a location without a scheme"
        supported = ", ".join(f"{scheme}:" for scheme in sorted(FETCHERS))
        raise _refused(f"{uri!a}: {named} is not supported; supported: {supported}")
    return fetcher(uri, limits)


def path_to_uri(path: str | os.PathLike[str]) -> str:
    """A path, made absolute, as a percent-encoded ``file:`` URI in ASCII."""
    return "file://" + quote_from_bytes(os.fsencode(Path(path).absolute()))


def uri_to_path(uri: str) -> Path:
    """The path of ``file:///x``, ``file:/x`` or ``file://localhost/x``.

    Raises:
        MediaError: ``REFUSED`` for another scheme or host, for a path that is not
            absolute, and for a bare ``?`` or ``#`` (write ``%3F``, ``%23``).
    """
    if _scheme(uri) != "file":
        raise _refused(f"{uri!a} is not a file: URI")
    rest = uri.partition(":")[2]
    if rest.startswith("//"):
        host, slash, tail = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise _refused(f"{uri!a} names the host {host!a}; only files of this machine are read")
        rest = slash + tail
    if not rest.startswith("/"):
        raise _refused(f"{uri!a} names no absolute path; write file:///path/to/image")
    if "?" in rest or "#" in rest:
        raise _refused(f"{uri!a} has a bare ? or #; in a file name write %3F and %23")
    try:
        encoded = unquote_to_bytes(rest.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise _refused(f"{uri!a} holds characters that no file name can hold") from None
    if b"\0" in encoded:
        raise _refused(f"{uri!a} holds a NUL byte, which no file name can hold")
    return Path(os.fsdecode(encoded))


def etag_of(status: os.stat_result) -> str:
    """A file's state as text: its size in bytes and its modification time in ns."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _scheme(uri: str) -> str:
    # Not urlsplit: it drops newlines and tabs from what it is given.
    scheme, colon, _ = uri.partition(":")
    valid = scheme.isascii() and scheme[:1].isalpha() and scheme.replace("+", "").isalnum()
    return scheme.lower() if colon and valid else ""


def _fetch_file(uri: str, limits: MediaSettings) -> Fetched:
    path = uri_to_path(uri)
    try:
        # Before opening: to open a device or a FIFO can already do something.
        _require_regular(path.stat(), path)
        # O_NONBLOCK: should it have become a FIFO since, open() must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            before = os.fstat(descriptor)
            _require_regular(before, path)
            if before.st_size > limits.max_bytes:
                raise _refused(
                    f"{_show(path)} has {before.st_size} bytes; "
                    f"media.max_bytes admits {limits.max_bytes}"
                )
            data = file.read(before.st_size + 1)
            while 0 < len(data) < before.st_size and (more := file.read(before.st_size)):
                data += more
            after = os.fstat(descriptor)
    except OSError as error:
        raise _from_os_error(error, path) from error
    except MemoryError:
        raise MediaError(
            FailureClass.OUT_OF_MEMORY, f"{_show(path)}: no memory for its bytes"
        ) from None
    if etag_of(after) != etag_of(before) or len(data) != before.st_size:
        raise MediaError(
            FailureClass.FETCH_TRANSIENT, f"{_show(path)} changed while it was being read"
        )
    if not data:
        raise MediaError(FailureClass.UNDECODABLE, f"{_show(path)} is empty (0 bytes)")
    return Fetched(data, etag_of(before))


FETCHERS: dict[str, Fetcher] = {"file": _fetch_file}


def _require_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise _refused(f"{_show(path)} is {kind}, not a file")


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
# These stay until somebody changes the file or the settings; any other error may pass.
_REFUSED = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.ENODEV,
        errno.EINVAL,
    }
)


def _from_os_error(error: OSError, path: Path) -> MediaError:
    if error.errno in _GONE:
        return MediaError(FailureClass.FETCH_GONE, f"{_show(path)} is not there")
    reason = error.strerror or str(error)
    if error.errno in _REFUSED:
        return _refused(f"{_show(path)} cannot be read: {reason}")
    return MediaError(FailureClass.FETCH_TRANSIENT, f"{_show(path)} could not be read: {reason}")


def _refused(message: str) -> MediaError:
    return MediaError(FailureClass.REFUSED, message)


def _show(path: Path) -> str:
    """A path in a message that any terminal and any database can take."""
    return ascii(str(path))
