"""URIs and paths, and what a fetch admits."""

import errno
import os
import socket
from pathlib import Path

import pytest

from pinq.config import MediaSettings
from pinq.errors import FailureClass, MediaError
from pinq.media.fetch import etag_of, fetch, path_to_uri, uri_to_path

LIMITS = MediaSettings()


def refusal_of(uri: str, limits: MediaSettings = LIMITS) -> MediaError:
    with pytest.raises(MediaError) as caught:
        fetch(uri, limits)
    return caught.value


def test_a_file_is_fetched_whole_with_an_etag(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x" * 100_000)
    fetched = fetch(path_to_uri(path), LIMITS)
    assert fetched.data == b"x" * 100_000
    assert fetched.etag == etag_of(path.stat()) == f"100000-{path.stat().st_mtime_ns}"


def test_the_etag_changes_when_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    first = fetch(path_to_uri(path), LIMITS).etag
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert fetch(path_to_uri(path), LIMITS).etag != first


@pytest.mark.parametrize(
    "name",
    [
        b"plain.jpg",
        b"with space.jpg",
        b"new\nline\t.jpg",
        b"100%.jpg",
        b"what?#.jpg",
        b"caf\xc3\xa9.jpg",
        b"not-utf8-\xff\xfe.jpg",
        b"semi;colon:and,comma&plus+.jpg",
    ],
)
def test_any_name_survives_the_way_to_a_uri_and_back(tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_bytes(name)
    uri = path_to_uri(path)
    assert uri.isascii() and uri.isprintable() and " " not in uri
    assert uri_to_path(uri) == path
    assert fetch(uri, LIMITS).data == name


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert uri_to_path(path_to_uri("a/../b.jpg")) == tmp_path / "a/../b.jpg"


@pytest.mark.parametrize(
    "uri", ["file:///x/y", "file:/x/y", "file://localhost/x/y", "FILE:///x/y", "file:///x%2Fy"]
)
def test_the_customary_spellings_of_a_file_uri_are_read(uri: str) -> None:
    assert uri_to_path(uri) == Path("/x/y")


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("file://elsewhere/x", "host 'elsewhere'"),
        ("file:x", "absolute"),
        ("file:", "absolute"),
        ("file:///x?y", "%3F"),
        ("file:///x#y", "%23"),
        ("file:///x%00y", "NUL"),
        ("file:///\ud800", "no file name"),
        ("gopher://x/y", "gopher: is not supported; supported: file:"),
        ("photos/a.jpg", "without a scheme"),
        ("/photos/a.jpg", "without a scheme"),
        ("", "without a scheme"),
    ],
)
def test_what_is_no_file_of_this_machine_is_refused_with_the_reason(uri: str, word: str) -> None:
    error = refusal_of(uri)
    assert error.failure_class is FailureClass.REFUSED
    assert word in str(error)


@pytest.mark.parametrize("below", ["gone.jpg", "file/gone.jpg"])
def test_what_is_not_there_is_gone(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    assert refusal_of(path_to_uri(tmp_path / below)).failure_class is FailureClass.FETCH_GONE


def test_directories_fifos_sockets_and_devices_are_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)  # a socket's path may have 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for path in (tmp_path, tmp_path / "fifo", tmp_path / "socket", Path("/dev/zero")):
            error = refusal_of(path_to_uri(path))
            assert error.failure_class is FailureClass.REFUSED
            assert "not a file" in str(error)


def test_a_link_that_leads_nowhere_is_gone_and_one_in_a_circle_refused(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    dangling = refusal_of(path_to_uri(tmp_path / "dangling"))
    circle = refusal_of(path_to_uri(tmp_path / "circle"))
    assert dangling.failure_class is FailureClass.FETCH_GONE
    assert circle.failure_class is FailureClass.REFUSED


def test_too_many_bytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    error = refusal_of(path_to_uri(path))
    assert error.failure_class is FailureClass.REFUSED
    assert "media.max_bytes" in str(error)


def test_a_file_of_exactly_the_limit_is_admitted(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x" * 10)
    assert fetch(path_to_uri(path), MediaSettings(max_bytes=10)).data == b"x" * 10
    error = refusal_of(path_to_uri(path), MediaSettings(max_bytes=9))
    assert error.failure_class is FailureClass.REFUSED


def test_an_empty_file_is_undecodable_and_said_to_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    error = refusal_of(path_to_uri(path))
    assert error.failure_class is FailureClass.UNDECODABLE
    assert "empty" in str(error)


@pytest.mark.parametrize("size", [0, 50, 150])
def test_a_file_that_changes_while_it_is_read_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x" * 100)
    opened = os.open

    def open_then_resize(*args: object, **more: object) -> int:
        descriptor = opened(*args, **more)  # type: ignore[arg-type]
        original = os.fstat

        def fstat(number: int) -> os.stat_result:
            status = original(number)
            os.truncate(path, size)
            return status

        monkeypatch.setattr(os, "fstat", fstat)
        return descriptor

    monkeypatch.setattr(os, "open", open_then_resize)
    error = refusal_of(path_to_uri(path))
    assert error.failure_class is FailureClass.FETCH_TRANSIENT
    assert "changed" in str(error)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, FailureClass.REFUSED),
        (errno.EPERM, FailureClass.REFUSED),
        (errno.ENAMETOOLONG, FailureClass.REFUSED),
        (errno.ENOENT, FailureClass.FETCH_GONE),
        (errno.EIO, FailureClass.FETCH_TRANSIENT),
        (errno.ESTALE, FailureClass.FETCH_TRANSIENT),
        (errno.EMFILE, FailureClass.FETCH_TRANSIENT),
    ],
)
def test_each_error_of_the_system_has_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: FailureClass
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    assert refusal_of(path_to_uri(path)).failure_class is expected
