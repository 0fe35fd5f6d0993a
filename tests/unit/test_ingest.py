"""Paths, folders, patterns and lists become signed items; what is bad is told."""

import hashlib
import io
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinq.ingest.items import BadItem, Item, Ready, Signed
from pinq.ingest.lists import LineReader, read_list
from pinq.ingest.paths import discover
from pinq.ingest.signing import prepare, sign
from pinq.media.signature import new_digest, signature_of


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode("utf-8", "surrogateescape"))


def found(*paths: str) -> list[str]:
    """Paths as they are; what is bad as (path, reason) in words."""
    return [
        f"{each.source}! {each.reason}" if isinstance(each, BadItem) else str(each)
        for each in discover(paths)
    ]


def listed(data: bytes | str) -> list[Item | BadItem]:
    if isinstance(data, str):
        data = data.encode()
    return list(read_list(io.BytesIO(data), "l"))


# --- discover -------------------------------------------------------------------


def test_a_folder_is_read_to_its_depths_in_the_order_of_names() -> None:
    make("p/b.jpg", "p/a/z.png", "p/a/y.WEBP", "p/c.txt", "p/d.tiff", "p/e")
    assert found("p") == ["p/a/y.WEBP", "p/a/z.png", "p/b.jpg", "p/d.tiff"]


def test_hidden_entries_of_a_folder_are_skipped_but_a_hidden_folder_may_be_named() -> None:
    make("p/.h.jpg", "p/.git/x.jpg", "p/a.jpg")
    assert found("p") == ["p/a.jpg"]
    assert found("p/.git") == ["p/.git/x.jpg"]


def test_a_file_that_is_named_is_taken_whatever_it_is_called() -> None:
    make("p/image", "p/.h")
    assert found("p/image", "p/.h") == ["p/image", "p/.h"]


def test_only_the_formats_asked_for_are_looked_for() -> None:
    make("p/a.jpg", "p/b.png")
    assert [str(p) for p in discover(["p"], formats=["PNG"])] == ["p/b.png"]


def test_a_link_back_to_a_folder_above_is_not_followed() -> None:
    make("p/a/x.jpg")
    Path("p/a/up").symlink_to("..")
    Path("p/a/self").symlink_to(".")
    assert found("p") == ["p/a/x.jpg"]


def test_a_link_to_a_folder_elsewhere_is_followed() -> None:
    make("elsewhere/x.jpg")
    Path("p").mkdir()
    Path("p/there").symlink_to("../elsewhere")
    assert found("p") == ["p/there/x.jpg"]


def test_what_cannot_be_an_image_is_told_in_its_place() -> None:
    make("p/b.jpg")
    Path("p/a.jpg").symlink_to("nowhere")
    os.mkfifo("p/c.jpg")
    Path("loop").symlink_to("loop")
    assert found("p", "gone", "loop", "p/c.jpg", "p/b.jpg/x", "") == [
        "p/a.jpg! no such file (a broken link)",
        "p/b.jpg",
        "p/c.jpg! is not a regular file",
        "gone! no such file or folder",
        "loop! too many levels of symbolic links",
        "p/c.jpg! is not a regular file",
        "p/b.jpg/x! not a directory",
        "! an empty path",
    ]


def test_a_folder_without_images_is_told() -> None:
    make("p/readme.txt")
    (told,) = found("p")
    assert told.startswith("p! holds no images (looked for .avif ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_told_and_the_rest_goes_on() -> None:
    make("p/a/x.jpg", "p/b/y.jpg")
    Path("p/a").chmod(0)
    assert found("p") == ["p/a! permission denied", "p/b/y.jpg"]


def test_a_pattern_that_the_shell_left_alone_is_expanded() -> None:
    make("p/a.jpg", "p/b.png", "p/q/c.jpg", "p/q/.d.jpg")
    assert found("p/*.jpg") == ["p/a.jpg"]
    assert found("p/**/*.jpg") == ["p/a.jpg", "p/q/c.jpg"]
    assert found("p/q*") == ["p/q/c.jpg"]
    assert found("p/*.gif") == ["p/*.gif! matches nothing"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file() -> None:
    make("a[1].jpg", "a1.jpg")
    assert found("a[1].jpg") == ["a[1].jpg"]


def test_names_of_any_bytes_are_found() -> None:
    strange = [os.fsdecode(name) for name in (b"a b.jpg", b"n\nl.jpg", b"\xff\xfe.jpg")]
    make(*[f"p/{name}" for name in strange])
    assert found("p") == [f"p/{name}" for name in strange]


def test_uris_are_understood_where_their_bytes_are_at_hand(tmp_path: Path) -> None:
    make("a b.jpg")
    assert found(f"file://{tmp_path}/a%20b.jpg") == [f"{tmp_path}/a b.jpg"]
    (told,) = found("http://example.org/x.jpg")
    assert "a list with a signature" in told


def test_a_tree_deeper_than_the_stack_is_read() -> None:
    deepest = "d" + "/e" * 1100
    try:  # pathlib recurses to make, and pytest to remove, a tree this deep
        subprocess.run(["mkdir", "-p", deepest], check=True)
        Path(deepest, "x.jpg").touch()
        assert found("d") == [f"{deepest}/x.jpg"]
    finally:
        subprocess.run(["rm", "-rf", "d"], check=True)


# --- lists ----------------------------------------------------------------------


def test_plain_lines_are_kept_byte_for_byte() -> None:
    assert listed(b"\xef\xbb\xbfa b.jpg\r\n\n \n#1.jpg\n\xff.jpg\nlast") == [
        Item("a b.jpg", origin="l:1"),
        Item("#1.jpg", origin="l:4"),
        Item("\udcff.jpg", origin="l:5"),
        Item("last", origin="l:6"),
    ]


def test_json_lines_are_read_and_bad_ones_are_told_by_number() -> None:
    items = listed(
        b'\n{"uri": "a.jpg"}\n{"signature": "s", "uri": "b"}\nx\n\n{"uri": 3}\n[]\n'
        b'{"signature": null, "uri": ""}\n{"uri": "\xff"}\n{"uri":"c"}'
    )
    assert [each for each in items if isinstance(each, Item)] == [
        Item("a.jpg", None, "l:2"),
        Item("b", "s", "l:3"),
        Item("c", None, "l:10"),
    ]
    assert [
        (each.origin, each.reason.split(":")[0]) for each in items if isinstance(each, BadItem)
    ] == [
        ("l:4", "is not JSON"),
        ("l:6", "uri is not a string"),
        ("l:7", "is not an object like {\"uri\""),
        ("l:8", "has neither uri nor signature"),
        ("l:9", "is not UTF-8"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "uri,signature\na.jpg,s1\n",
        "signature,uri\r\ns1,a.jpg\r\n",
        '\ufeff"Signature", URI \ns1,a.jpg',
        "id,uri,width,signature\n7,a.jpg,640,s1\n",
    ],
)
def test_csv_columns_come_in_any_order(text: str) -> None:
    (item,) = listed(text)
    assert isinstance(item, Item)
    assert (item.source, item.signature, item.origin) == ("a.jpg", "s1", "l:2")


def test_csv_fields_may_be_quoted_and_hold_line_ends() -> None:
    assert listed('uri,signature\n"a ""b"", c.jpg",s1\n"two\nlines",s2\n\nz,\n') == [
        Item('a "b", c.jpg', "s1", "l:2"),
        Item("two\nlines", "s2", "l:3"),
        Item("z", None, "l:6"),
    ]


def test_a_stray_quote_costs_its_own_line_only() -> None:
    items = listed('uri,signature\n"a,s1\n' + "".join(f"b{i},t{i}\n" for i in range(20_000)))
    assert isinstance(items[0], BadItem)
    assert items[0].origin == "l:2"
    assert len(items) == 20_001
    assert items[-1] == Item("b19999", "t19999", "l:20002")


def test_a_row_that_is_too_short_is_told() -> None:
    items = listed("uri,signature\na\n,\n")
    assert [(each.origin, each.reason) for each in items if isinstance(each, BadItem)] == [
        ("l:2", "has 1 of 2 columns"),
        ("l:3", "has neither uri nor signature"),
    ]


def test_a_first_name_that_starts_with_a_brace_is_a_name() -> None:
    assert listed("{x}.jpg\n") == [Item("{x}.jpg", origin="l:1")]


def test_an_empty_list_has_nothing() -> None:
    assert listed("") == listed("\n \r\n") == []


def test_another_encoding_and_a_binary_file_are_refused_in_a_word() -> None:
    assert [each.reason for each in listed("a.jpg".encode("utf-16")) if isinstance(each, BadItem)]
    (bad,) = listed(b"\x89PNG\r\n\x1a\n\0\0\0".replace(b"\n", b"") + b"\n" * 3)
    assert isinstance(bad, BadItem)


def test_an_endless_line_is_refused_and_the_next_one_is_read() -> None:
    items = listed(b"x" * 1_000_000 + b"\nnext.jpg\n")
    assert isinstance(items[0], BadItem)
    assert "longer than 64 KiB" in items[0].reason
    assert items[1:] == [Item("next.jpg", origin="l:2")]


@pytest.mark.parametrize("kind", ["plain", "json", "csv"])
def test_memory_stays_flat_on_a_long_list(kind: str) -> None:
    class Endless(io.RawIOBase):
        def __init__(self) -> None:
            self.left = 40_000
            self.first = kind == "csv"

        def readline(self, size: int | None = -1, /) -> bytes:
            if self.first:
                self.first = False
                return b"uri,signature\n"
            self.left -= 1
            line = {"plain": b"/p/%d.jpg\n", "json": b'{"uri":"/p/%d.jpg"}\n', "csv": b"/p/%d,s\n"}
            return line[kind] % self.left if self.left >= 0 else b""

    tracemalloc.start()
    try:
        count = sum(isinstance(each, Item) for each in read_list(Endless(), "l"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 40_000
    assert peak < 1_000_000


def test_a_line_reader_knows_when_the_next_line_is_not_there_yet() -> None:
    reading, writing = os.pipe()
    reader = LineReader(reading)
    os.write(writing, b"one\ntwo\nthr")
    assert reader.readline(100) == b"one\n"
    assert not reader.idle(0)
    assert reader.readline(100) == b"two\n"
    assert reader.idle(0)
    os.write(writing, b"ee\n" + b"x" * 10)
    os.close(writing)
    assert not reader.idle(0)
    assert reader.readline(100) == b"ee\n".join([b"thr", b""])
    assert [reader.readline(4) for _ in range(4)] == [b"xxxx", b"xxxx", b"xx", b""]
    assert not reader.idle(0)
    os.close(reading)


# --- signing --------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 5000])
def test_a_signature_is_the_128_bit_blake2b_of_the_bytes(size: int) -> None:
    data = os.urandom(size)
    Path("x").write_bytes(data)
    signed = sign(Path("x"), whole=4096)
    assert isinstance(signed, Signed)
    assert signed.signature == hashlib.blake2b(data, digest_size=16).hexdigest()


@pytest.mark.parametrize(
    ("path", "reason"),
    [("gone", "no such file"), (".", "is a folder"), ("fifo", "regular"), ("a\0b", "NUL")],
)
def test_what_cannot_be_read_is_bad_and_leaks_no_descriptor(path: str, reason: str) -> None:
    os.mkfifo("fifo")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    bad = sign(Path(path))
    assert isinstance(bad, BadItem)
    assert reason in bad.reason
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_many_items_keep_their_order_and_each_its_fault() -> None:
    names = [f"{i:04}" for i in range(500)]
    make(*names)
    Path("0100").unlink()
    outcomes = list(prepare([Path(name) for name in names], threads=3))
    assert [
        each.uri.rpartition("/")[2] if isinstance(each, Ready) else each.source for each in outcomes
    ] == names
    assert [each.source for each in outcomes if isinstance(each, BadItem)] == ["0100"]


def test_items_are_read_no_further_than_a_bounded_look_ahead() -> None:
    make("x")
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield Path("x")

    prepared = prepare(endless())
    for _ in range(10):
        next(prepared)
    assert taken < 200
    before = threading.active_count()
    prepared.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before


def test_a_signature_that_is_brought_spares_the_reading(tmp_path: Path) -> None:
    assert list(
        prepare(
            [
                Item("not there.jpg", "s1"),
                Item("http://h/x.jpg", "s2"),
                Item(" s3://b/k ", "A.b_c-9"),
                Item("file:///x%20y", "s4"),
            ]
        )
    ) == [
        Ready("s1", f"file://{tmp_path}/not%20there.jpg"),
        Ready("s2", "http://h/x.jpg"),
        Ready("A.b_c-9", "s3://b/k"),
        Ready("s4", "file:///x%20y"),
    ]


def test_a_signature_alone_needs_the_pipelines_template() -> None:
    assert list(prepare([Item("", "s1")], media="s3://b/{signature}.jpg")) == [
        Ready("s1", "s3://b/s1.jpg")
    ]
    (bad,) = prepare([Item("", "s1")])
    assert isinstance(bad, BadItem)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (Item("http://h/x.jpg"), "a signature column is needed"),
        (Item("ftp://h/x.jpg", "s"), "none of file, http, https, s3"),
        (Item("http://h/\udcff", "s"), "percent-encode"),
        (Item("file://other/x"), "other"),
        (Item("a\0b"), "NUL"),
        (Item("\ud800"), ""),
        (Item("x", ""), "is no signature"),
        (Item("x", "a b"), "is no signature"),
        (Item("x", "a\n"), "is no signature"),
        (Item("x", "é"), "is no signature"),
        (Item("x", "s" * 129), "is no signature"),
        (Item(""), "neither uri nor signature"),
    ],
)
def test_an_item_that_cannot_be_a_job_is_told_with_its_origin(item: Item, reason: str) -> None:
    (bad,) = prepare([Item(item.source, item.signature, "l:7")])
    assert isinstance(bad, BadItem)
    assert reason in bad.reason
    assert str(bad).startswith("l:7: ")


def test_neither_torch_nor_dramatiq_is_imported() -> None:
    program = (
        "import sys, pinq.ingest.signing, pinq.ingest.lists;"
        "print({'torch', 'dramatiq', 'sqlalchemy'} & {*sys.modules})"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert told.stdout.strip() == b"set()"


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 100_000])
def test_a_signature_is_the_same_whoever_computes_it(size: int) -> None:
    data = bytes(n % 251 for n in range(size))
    digest = new_digest()
    digest.update(data)
    assert signature_of(data) == digest.hexdigest()
    assert signature_of(b"abc") == "cf4ab791c62b8d2b2109c90275287816"  # b2sum -l 128
