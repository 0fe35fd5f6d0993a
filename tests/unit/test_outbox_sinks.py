"""The sinks: segments of JSON lines that appear whole, and log lines."""

import fcntl
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pinq.errors import ConfigError, ReadOnlyHome, SinkError, StorageFull
from pinq.outbox.sinks.file import FileSink
from pinq.outbox.sinks.log import LogSink
from pinq.outbox.sinks.urls import open_sink

from ..conftest import MakeDisk, remount

NOON_MS = 1_700_000_000_123


def events(*numbers: int, padding: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"e{n}", "data": {"uri": "é\n" + "x" * padding}} for n in numbers]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for f in segments(folder) for line in f.read_text().splitlines()]


def test_each_publish_is_one_whole_segment_and_nothing_else_is_left(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "deep" / "events")
    sink.publish(events(1, 2))
    sink.publish(events(3))
    sink.close()
    sink.close()
    folder = tmp_path / "deep" / "events"
    assert read(folder) == events(1, 2, 3)
    assert [len(f.read_text().splitlines()) for f in segments(folder)] == [2, 1]
    assert sorted(folder.iterdir()) == segments(folder)


def test_nothing_to_publish_makes_no_segment(tmp_path: Path) -> None:
    FileSink(tmp_path).publish([])
    assert list(tmp_path.iterdir()) == []


def test_a_segment_is_named_by_time_process_and_number(tmp_path: Path) -> None:
    FileSink(tmp_path, now_ms=lambda: NOON_MS).publish(events(1))
    assert [f.name for f in tmp_path.iterdir()] == [
        f"20231114T221320.123Z-{os.getpid():07d}-000001.jsonl"
    ]


def test_names_sort_in_the_order_of_publishing_even_when_the_clock_is_set_back(
    tmp_path: Path,
) -> None:
    for moment in (NOON_MS, NOON_MS, NOON_MS - 3_600_000, 0, NOON_MS + 5):
        sink = FileSink(tmp_path, now_ms=lambda moment=moment: moment)  # type: ignore[misc]
        for _ in range(3):
            sink.publish(events(len(segments(tmp_path))))
    assert read(tmp_path) == events(*range(15))


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("theirs")
    (tmp_path / "zzz.2.jsonl").write_text("theirs")
    FileSink(tmp_path, now_ms=lambda: NOON_MS).publish(events(1))
    assert len(segments(tmp_path)) == 3


def test_a_name_that_is_taken_is_never_overwritten(tmp_path: Path) -> None:
    sink = FileSink(tmp_path, now_ms=lambda: NOON_MS)
    taken = tmp_path / f"20231114T221320.123Z-{os.getpid():07d}-000001.jsonl"
    taken.write_text("theirs")
    sink.publish(events(1))
    assert taken.read_text() == "theirs"
    assert len(segments(tmp_path)) == 2
    assert sorted(tmp_path.iterdir()) == segments(tmp_path)


def test_a_big_batch_is_split_by_size_in_order(tmp_path: Path) -> None:
    batch = events(*range(10), padding=1000)
    FileSink(tmp_path, max_segment_bytes=3500).publish(batch)
    assert read(tmp_path) == batch
    assert len(segments(tmp_path)) == 4
    assert all(f.stat().st_size <= 3500 for f in segments(tmp_path))


def test_an_event_above_the_size_is_published_alone(tmp_path: Path) -> None:
    batch = events(1, 2, 3, padding=1000)
    FileSink(tmp_path, max_segment_bytes=10).publish(batch)
    assert read(tmp_path) == batch
    assert len(segments(tmp_path)) == 3


def test_a_dead_writers_leftover_is_removed_and_a_live_ones_is_not(tmp_path: Path) -> None:
    dead, live = tmp_path / ".1.jsonl.part", tmp_path / ".2.jsonl.part"
    dead.write_text("half")
    with live.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        FileSink(tmp_path)
        assert not dead.exists()
        assert live.exists()
    FileSink(tmp_path)
    assert not live.exists()


def test_a_segment_that_was_taken_away_while_written_is_not_reported_as_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = FileSink(tmp_path)

    def sync_and_vanish(descriptor: int) -> None:
        for part in tmp_path.glob(".*.part"):
            part.unlink()

    monkeypatch.setattr("os.fsync", sync_and_vanish)
    with pytest.raises(SinkError, match="wait in the outbox"):
        sink.publish(events(1))
    monkeypatch.undo()
    sink.publish(events(1))
    assert read(tmp_path) == events(1)


def test_a_folder_removed_meanwhile_is_a_sink_error(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "events")
    (tmp_path / "events").rmdir()
    with pytest.raises(SinkError, match=re.escape(str(tmp_path / "events"))):
        sink.publish(events(1))


def test_a_file_where_the_folder_should_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("a file")
    with pytest.raises(ConfigError, match="is not a folder"):
        FileSink(tmp_path / "events")
    with pytest.raises(ConfigError, match="is not a folder"):
        FileSink(tmp_path / "events" / "below")


def test_a_full_disk_is_reported_leaves_no_half_segment_and_passes(make_disk: MakeDisk) -> None:
    disk = make_disk(1)
    sink = FileSink(disk)
    sink.publish(events(1))
    with pytest.raises(StorageFull, match=re.escape(str(disk))):
        sink.publish(events(2, padding=2_000_000))
    assert read(disk) == events(1)
    assert sorted(disk.iterdir()) == segments(disk)
    remount(disk, "size=8m")
    sink.publish(events(2, padding=2_000_000))
    assert len(read(disk)) == 2


def test_a_read_only_folder_is_reported(make_disk: MakeDisk) -> None:
    disk = make_disk(1)
    sink = FileSink(disk)
    remount(disk, "ro")
    with pytest.raises(ReadOnlyHome, match=re.escape(str(disk))):
        sink.publish(events(1))
    with pytest.raises(ReadOnlyHome, match=re.escape(str(disk))):
        FileSink(disk / "new")


def test_the_log_sink_writes_a_line_of_json_an_event(caplog: pytest.LogCaptureFixture) -> None:
    sink = LogSink()
    with caplog.at_level(logging.INFO, logger="pinq.events"):
        sink.publish(events(1, 2))
    sink.close()
    assert [json.loads(record.getMessage()) for record in caplog.records] == events(1, 2)
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert sink.linger_seconds == 0


@pytest.mark.parametrize("form", ["file://{}", "file:///{}", "file:////{}"])
def test_a_file_url_opens_the_folder_it_names(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "with space"
    sink = open_sink(form.format(folder))
    sink.publish(events(1))
    assert read(folder) == events(1)


def test_a_log_url_opens_the_log() -> None:
    assert isinstance(open_sink("log:"), LogSink)


@pytest.mark.parametrize("url", ["kafka://host", "file://host/x", "file:x", "file:///", "log", ""])
def test_a_url_of_another_kind_is_refused_with_what_is_supported(url: str) -> None:
    with pytest.raises(ConfigError, match="file:///path/to/folder or log:"):
        open_sink(url)
