"""The RocksDB store, by its contract: what is put is read, by whom, and what damage says."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from pinq.errors import (
    ConfigError,
    PinqError,
    ReadOnlyHome,
    StorageFull,
    StoreCorrupt,
    StoreError,
    StoreOwned,
)
from pinq.store.contract import SignalKey, SignalValue
from pinq.store.rocksdb import RocksdbStore
from pinq.store.urls import open_store

from ..conftest import MakeDisk, remount


def key(signature: str, signal: str = "pdq", version: int = 1, galaxy: str = "g") -> SignalKey:
    return SignalKey(galaxy, signal, version, signature)


def value(data: bytes = b"data") -> SignalValue:
    return SignalValue("uint8", (len(data),), data, 1_700_000_000_000, {"quality": 50})


def rows(count: int, size: int = 100, start: int = 0) -> list[tuple[SignalKey, SignalValue]]:
    return [(key(f"{i:08d}"), value(os.urandom(size))) for i in range(start, start + count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "signals"


@pytest.fixture
def store(path: Path) -> Iterator[RocksdbStore]:
    opened = RocksdbStore(path, write=True)
    yield opened
    opened.close()


@pytest.fixture
def beside(path: Path) -> Iterator[RocksdbStore]:
    opened = RocksdbStore(path, write=False)
    yield opened
    opened.close()


# Reading and writing


def test_what_is_put_is_read_in_the_order_asked(store: RocksdbStore) -> None:
    items = rows(3)
    store.put(items)
    assert store.get([items[2][0], key("absent"), items[0][0]]) == [items[2][1], None, items[0][1]]


def test_nothing_asked_and_nothing_put_do_nothing(store: RocksdbStore) -> None:
    store.put([])
    assert store.get([]) == []
    assert store.lookup("g", []) == []
    assert list(store.scan("g")) == []


def test_the_later_value_of_a_key_stands(store: RocksdbStore) -> None:
    store.put([(key("a"), value(b"old"))])
    store.put([(key("a"), value(b"new"))])
    assert store.get([key("a")]) == [value(b"new")]


def test_what_was_put_is_there_after_closing_and_opening(path: Path) -> None:
    items = rows(100)
    first = RocksdbStore(path, write=True)
    first.put(items)
    first.close()
    again = RocksdbStore(path, write=True)
    assert again.get([k for k, _ in items]) == [v for _, v in items]
    again.close()


def test_versions_lists_each_signal_and_version_once_and_only_of_the_galaxy(
    store: RocksdbStore, beside: RocksdbStore
) -> None:
    store.put([(key(f"{i}", "pdq", version), value()) for i in range(50) for version in (1, 256)])
    store.put([(key("a", "color", 2**32 - 1), value()), (key("a", "x", 9, "other"), value())])
    expected = [("color", 2**32 - 1), ("pdq", 1), ("pdq", 256)]
    assert store.versions("g") == expected
    assert beside.versions("g") == expected
    assert store.versions("nowhere") == []


def test_versions_notices_what_is_put_later(store: RocksdbStore, beside: RocksdbStore) -> None:
    store.put([(key("a", "pdq", 1), value())])
    assert store.versions("g") == beside.versions("g") == [("pdq", 1)]
    store.put([(key("a", "pdq", 2), value())])
    assert store.versions("g") == beside.versions("g") == [("pdq", 1), ("pdq", 2)]


def test_lookup_finds_the_newest_version_that_each_signature_has(store: RocksdbStore) -> None:
    store.put(
        [
            (key("both", "pdq", 1), value(b"1")),
            (key("both", "pdq", 2), value(b"2")),
            (key("old", "pdq", 1), value(b"1")),
            (key("old", "color", 7), value(b"7")),
        ]
    )
    assert store.lookup("g", ["both", "none", "old", "both"]) == [
        {"pdq": (2, value(b"2"))},
        {},
        {"pdq": (1, value(b"1")), "color": (7, value(b"7"))},
        {"pdq": (2, value(b"2"))},
    ]


def test_lookup_can_be_limited_to_some_signals(store: RocksdbStore) -> None:
    store.put([(key("a", name), value()) for name in ("pdq", "color", "quality")])
    assert store.lookup("g", ["a"], ["color", "unheard-of"]) == [{"color": (1, value())}]
    assert store.lookup("g", ["a"], []) == [{}]


def test_scan_yields_a_galaxy_in_key_order_across_many_chunks(store: RocksdbStore) -> None:
    items = rows(2000)
    store.put(list(reversed(items)))
    store.put([(key("x", galaxy="f"), value()), (key("x", galaxy="g2"), value())])
    assert list(store.scan("g")) == items


def test_a_scan_begun_before_a_put_hinders_nothing_and_close_ends_it(store: RocksdbStore) -> None:
    store.put(rows(2000))
    scan = store.scan("g")
    next(scan)
    store.put(rows(10, start=5000))
    store.close()
    with pytest.raises(StoreError, match="closed"):
        list(scan)


def test_a_closed_store_says_so_and_closing_twice_is_safe(
    store: RocksdbStore, beside: RocksdbStore
) -> None:
    for opened in (store, beside):
        opened.close()
        opened.close()
        with pytest.raises(StoreError, match="closed"):
            opened.get([key("a")])
    with pytest.raises(StoreError, match="closed"):
        store.put(rows(1))


def test_threads_put_and_read_together_while_another_closes(path: Path) -> None:
    store, beside = RocksdbStore(path, write=True), RocksdbStore(path, write=False)
    acknowledged: list[list[tuple[SignalKey, SignalValue]]] = []
    wrong: list[Exception] = []
    enough = threading.Event()

    def work(step: Callable[[int], None], name: int) -> None:
        try:
            for turn in range(100_000):
                step(name * 1_000_000 + turn * 16)
        except StoreError as error:
            if "closed" not in str(error):
                wrong.append(error)
        except Exception as error:  # noqa: BLE001 - told to the main thread
            wrong.append(error)

    def put(start: int) -> None:
        items = rows(16, start=start)
        store.put(items)
        acknowledged.append(items)
        if len(acknowledged) >= 60:
            enough.set()

    def read(start: int) -> None:
        for items in acknowledged[-2:]:
            assert store.get([k for k, _ in items]) == [v for _, v in items]
            assert beside.get([k for k, _ in items]) == [v for _, v in items]
            assert next(beside.scan("g"))

    threads = [
        threading.Thread(target=work, args=(step, name))
        for name, step in enumerate([put, put, put, read, read])
    ]
    for thread in threads:
        thread.start()
    assert enough.wait(30)
    beside.close()
    store.close()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    again = RocksdbStore(path, write=True)
    items = [item for batch in acknowledged for item in batch]
    assert again.get([k for k, _ in items]) == [v for _, v in items]
    again.close()


# Beside the owner


def test_a_store_that_does_not_exist_reads_as_empty_and_nothing_is_made(
    path: Path, beside: RocksdbStore
) -> None:
    assert beside.get([key("a")]) == [None]
    assert beside.lookup("g", ["a", "b"]) == [{}, {}]
    assert beside.versions("g") == []
    assert list(beside.scan("g")) == []
    assert list(path.parent.iterdir()) == []


def test_a_reader_that_came_first_sees_the_store_once_it_is_there(
    path: Path, beside: RocksdbStore
) -> None:
    assert beside.get([key("a")]) == [None]
    store = RocksdbStore(path, write=True)
    store.put([(key("a"), value())])
    assert beside.get([key("a")]) == [value()]
    store.close()
    assert beside.get([key("a")]) == [value()]


def test_a_reader_sees_every_put_at_once_through_flushes_compactions_and_new_manifests(
    path: Path, beside: RocksdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinq.store.options.WRITE_BUFFER_BYTES", 128 * 1024)
    for generation in range(3):  # each opening starts a new manifest
        store = RocksdbStore(path, write=True)
        for turn in range(20):
            items = rows(16, size=4096, start=(generation * 20 + turn) * 16)
            store.put(items)
            assert beside.get([k for k, _ in items]) == [v for _, v in items]
        store.close()
    assert len(list(beside.scan("g"))) == 960


def test_a_reader_notices_that_the_folder_was_replaced(path: Path, beside: RocksdbStore) -> None:
    store = RocksdbStore(path, write=True)
    store.put([(key("a"), value(b"old"))])
    assert beside.get([key("a")]) == [value(b"old")]
    store.close()
    path.rename(path.with_name("away"))
    assert beside.get([key("a")]) == [None]
    store = RocksdbStore(path, write=True)
    store.put([(key("a"), value(b"new"))])
    assert beside.get([key("a")]) == [value(b"new")]
    store.close()


def test_a_reader_writes_nothing_into_the_home_and_leaves_no_scratch(
    path: Path, store: RocksdbStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    store.put(rows(10))

    def look() -> list[tuple[str, int, int]]:
        return sorted((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in path.iterdir())

    before = look()
    beside = RocksdbStore(path, write=False)
    assert len(list(beside.scan("g"))) == 10
    assert list(scratch.iterdir())
    beside.close()
    assert look() == before
    assert list(scratch.iterdir()) == []


def test_a_store_opened_to_read_refuses_puts(beside: RocksdbStore) -> None:
    with pytest.raises(StoreError, match="opened to read"):
        beside.put(rows(1))


# Who owns it


def test_a_second_writer_in_the_process_is_told_so_by_whatever_name_it_comes(
    path: Path, store: RocksdbStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for name in (path, link, Path("signals")):
        with pytest.raises(StoreOwned, match="this very process"):
            RocksdbStore(name, write=True)
    assert ask_to_write(path).startswith("StoreOwned")  # the lock is still held


def test_a_second_process_is_told_who_owns_the_store_and_what_to_do(
    path: Path, store: RocksdbStore
) -> None:
    answer = ask_to_write(path)
    assert answer.startswith(f"StoreOwned process {os.getpid()} (")
    assert "pytest" in answer
    assert " since 20" in answer
    assert "wait for it to end" in answer
    store.close()
    assert ask_to_write(path) == "opened"


def test_the_owner_file_of_a_dead_process_names_nobody(path: Path, store: RocksdbStore) -> None:
    owner_file = path.with_name("signals.owner")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    told = json.loads(owner_file.read_text())
    for stale in (
        {**told, "pid": int(dead.stdout)},
        {**told, "started": "1"},  # its number is another process's now
        {**told, "pid": "no number"},
        [],
    ):
        owner_file.write_text(json.dumps(stale))
        assert ask_to_write(path).startswith("StoreOwned another process has the store")


def test_a_stale_owner_file_hinders_nobody(path: Path) -> None:
    path.with_name("signals.owner").write_text('{"pid": 1')
    store = RocksdbStore(path, write=True)
    store.close()
    assert not path.with_name("signals.owner").exists()


# Damage


def garble(file: Path, offset: int | None = None) -> None:
    with file.open("r+b") as f:
        f.seek(file.stat().st_size // 2 if offset is None else offset)
        f.write(b"\xa5" * 64)


def newest(path: Path, pattern: str) -> Path:
    return sorted(path.glob(pattern))[-1]


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose owner was killed: a table, and a log that isn't flushed."""
    path = tmp_path_factory.mktemp("crashed") / "signals"
    program = (
        f"import os, sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r});"
        "from tests.unit.test_store_rocksdb import RocksdbStore, rows;"
        "path = sys.argv[1];"
        "s = RocksdbStore(path, write=True); s.put(rows(500)); s.close();"
        "s = RocksdbStore(path, write=True);"
        "[s.put(rows(10, start=500 + 10 * i)) for i in range(50)];"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)])
    assert list(path.glob("*.sst"))
    return path


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a table garbled": lambda p: garble(newest(p, "*.sst")),
    "a table cut": lambda p: os.truncate(newest(p, "*.sst"), 1000),
    "a table gone": lambda p: newest(p, "*.sst").unlink(),
    "the manifest garbled": lambda p: garble(newest(p, "MANIFEST*")),
    "the manifest empty": lambda p: os.truncate(newest(p, "MANIFEST*"), 0),
    "the manifest gone": lambda p: newest(p, "MANIFEST*").unlink(),
    "CURRENT garbled": lambda p: (p / "CURRENT").write_bytes(b"\xa5" * 16),
    "CURRENT nonsense": lambda p: (p / "CURRENT").write_bytes(b"../../etc/passwd\n"),
    "CURRENT empty": lambda p: os.truncate(p / "CURRENT", 0),
    "CURRENT gone": lambda p: (p / "CURRENT").unlink(),
    "CURRENT and log gone": lambda p: [f.unlink() for f in [p / "CURRENT", *p.glob("*.log")]],
    "the log garbled": lambda p: garble(newest(p, "*.log")),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("write", [True, False], ids=["writing", "reading"])
def test_damage_is_reported_with_the_folder_and_what_to_do(
    crashed: Path, path: Path, damage: str, write: bool
) -> None:
    shutil.copytree(crashed, path)
    DAMAGES[damage](path)
    for _ in range(2):  # and asking again doesn't paper it over
        with pytest.raises(StoreCorrupt) as told:
            store = RocksdbStore(path, write=write)
            try:
                list(store.scan("g"))
            finally:
                store.close()
        assert str(path) in str(told.value)
        assert "move that folder away" in str(told.value)


def test_damage_met_by_a_get_is_reported(crashed: Path, path: Path) -> None:
    shutil.copytree(crashed, path)
    garble(newest(path, "*.sst"))
    for write in (True, False):
        store = RocksdbStore(path, write=write)
        with pytest.raises(StoreCorrupt, match="checksum"):
            store.get([key(f"{i:08d}") for i in range(500)])
        store.close()


@pytest.mark.parametrize("write", [True, False], ids=["writing", "reading"])
@pytest.mark.parametrize("end", ["torn", "zeros"])
def test_the_torn_end_of_a_log_is_no_damage(
    crashed: Path, path: Path, end: str, write: bool
) -> None:
    shutil.copytree(crashed, path)
    file = newest(path, "*.log")
    size = file.stat().st_size
    os.truncate(file, size - 100 if end == "torn" else size + 100_000)
    store = RocksdbStore(path, write=write)
    assert len(list(store.scan("g"))) == (990 if end == "torn" else 1000)
    store.close()


def test_a_damaged_value_is_named(path: Path) -> None:
    store = RocksdbStore(path, write=True)
    store.close()
    raw = Rdict(str(path), Options(raw_mode=True))
    raw[b"g\0pdq\0\0\0\0\1bad"] = b"\x81"
    raw.close()
    for write in (True, False):
        store = RocksdbStore(path, write=write)
        with pytest.raises(StoreCorrupt, match="pdq@1 for bad in galaxy g"):
            store.get([key("bad")])
        with pytest.raises(StoreCorrupt, match="pdq@1 for bad in galaxy g"):
            list(store.scan("g"))
        store.close()


@pytest.mark.parametrize("write", [True, False], ids=["writing", "reading"])
def test_a_file_where_the_folder_should_be_is_a_clear_error(path: Path, write: bool) -> None:
    path.write_text("a file")
    with pytest.raises(PinqError, match="not a folder"):
        RocksdbStore(path, write=write)


# Space and permission


def test_a_full_disk_loses_nothing_and_the_same_store_works_once_there_is_space(
    make_disk: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinq.store.options.WRITE_BUFFER_BYTES", 1024 * 1024)
    disk = make_disk(8)
    store = RocksdbStore(disk / "signals", write=True)
    beside = RocksdbStore(disk / "signals", write=False)
    kept: list[tuple[SignalKey, SignalValue]] = []
    with pytest.raises(StorageFull, match="no space left for the store"):
        while True:
            items = rows(16, size=4096, start=len(kept))
            store.put(items)
            kept += items
    assert len(kept) > 100
    with pytest.raises(StorageFull):
        store.put(rows(16, size=4096, start=10_000_000))

    def all_kept(reader: RocksdbStore) -> bool:
        return reader.get([k for k, _ in kept]) == [v for _, v in kept]

    assert all_kept(store)
    assert all_kept(beside)
    remount(disk, "size=32m")
    more = [rows(16, size=4096, start=20_000_000 + 16 * i) for i in range(8)]
    threads = [threading.Thread(target=store.put, args=(items,)) for items in more]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept += [item for items in more for item in items]
    assert all_kept(store)
    assert all_kept(beside)
    store.close()
    beside.close()
    again = RocksdbStore(disk / "signals", write=True)
    assert all_kept(again)
    again.close()


def test_a_store_closed_on_a_full_disk_keeps_what_was_put(make_disk: MakeDisk) -> None:
    disk = make_disk(8)
    store = RocksdbStore(disk / "signals", write=True)
    items = rows(100, size=4096)
    store.put(items)
    with pytest.raises(OSError), (disk / "filler").open("wb") as filler:
        while True:
            filler.write(b"x" * 65536)
            filler.flush()
    store.close()
    with pytest.raises(StorageFull):
        RocksdbStore(disk / "signals", write=True).put(rows(100, size=4096))
    (disk / "filler").unlink()
    again = RocksdbStore(disk / "signals", write=True)
    assert again.get([k for k, _ in items]) == [v for _, v in items]
    again.close()


def test_a_read_only_home_is_read_but_not_written(make_disk: MakeDisk) -> None:
    disk = make_disk(8)
    path, items = disk / "signals", rows(100)
    store = RocksdbStore(path, write=True)
    store.put(items)
    store.close()
    remount(disk, "ro")
    for name in (path, disk / "new"):
        with pytest.raises(ReadOnlyHome, match=str(name)):
            RocksdbStore(name, write=True)
    beside = RocksdbStore(path, write=False)
    assert beside.get([k for k, _ in items]) == [v for _, v in items]
    assert beside.versions("g") == [("pdq", 1)]
    assert list(beside.scan("g")) == items
    beside.close()
    nothing = RocksdbStore(disk / "new", write=False)
    assert nothing.get([key("a")]) == [None]
    nothing.close()


# URLs


@pytest.mark.parametrize("url", ["rocksdb:///{}", "rocksdb://{}", "rocksdb:////{}"])
def test_a_rocksdb_url_opens_the_folder_it_names(path: Path, url: str) -> None:
    located = url.format(str(path) if url.count("/") == 2 else str(path).lstrip("/"))
    store = open_store(located, write=True)
    store.put([(key("a"), value())])
    reader = open_store(located)
    assert reader.get([key("a")]) == [value()]
    reader.close()
    store.close()
    assert (path / "CURRENT").exists()


@pytest.mark.parametrize(
    "url", ["redis://host/0", "grpc://host:1", "rocksdb://host", "rocksdb:///", "/a/path", ""]
)
def test_a_url_of_another_kind_is_refused_with_what_is_supported(url: str) -> None:
    with pytest.raises(ConfigError, match="rocksdb:///"):
        open_store(url)


def ask_to_write(path: Path) -> str:
    """What another process hears that opens the store to write."""
    program = (
        "import sys\n"
        "from pinq.errors import PinqError\n"
        "from pinq.store.rocksdb import RocksdbStore\n"
        "try:\n"
        "    RocksdbStore(sys.argv[1], write=True).close()\n"
        "    print('opened')\n"
        "except PinqError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], stdout=-1, text=True, check=True
    )
    return done.stdout.strip()
