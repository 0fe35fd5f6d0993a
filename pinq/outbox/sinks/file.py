"""Events as files of JSON lines.

A segment is written aside, under a hidden name, synced, and renamed to
``*.jsonl`` when it is whole. So a reader that lists ``*.jsonl`` sees only whole
files, and their names sort in the order of publishing:
``20260730T101530.123Z-0004711-000001.jsonl`` (time, process, number).
"""

import errno
import fcntl
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from pinq.errors import ConfigError, ReadOnlyHome, SinkError, StorageFull
from pinq.outbox.sinks.contract import CloudEvent

MAX_SEGMENT_BYTES = 16 * 1024 * 1024
_PART = ".part"
_STAMP = "%Y%m%dT%H%M%S"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class FileSink:
    """Writes segments of JSON lines into a folder; safe to use from several threads.

    What a writer that died left behind is removed when a sink is opened; what
    a live one is writing is not.

    Args:
        directory: the folder; made if need be.
        linger_seconds: how long an event may wait for others to share its segment.
        max_events: so many events don't wait any longer.
        max_segment_bytes: a longer batch is split; one event is never.
        now_ms: the clock that names the segments.

    Raises:
        ReadOnlyHome: the folder cannot be written.
        StorageFull: there is no space to make it.
        ConfigError: there is something else where the folder should be.
    """

    def __init__(
        self,
        directory: str | Path,
        linger_seconds: float = 1.0,
        max_events: int = 5000,
        *,
        max_segment_bytes: int = MAX_SEGMENT_BYTES,
        now_ms: Callable[[], int] = _wall_ms,
    ) -> None:
        self.directory = Path(directory)
        self.linger_seconds = linger_seconds
        self.max_events = max_events
        self._max_segment_bytes = max_segment_bytes
        self._now_ms = now_ms
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        with self._errors():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            # A clock that was set back must not sort new events before old ones.
            names = (file.name for file in self.directory.glob("*.jsonl"))
            self._last_ms = max(map(_time_in, names), default=0)

    def publish(self, events: Sequence[CloudEvent]) -> None:
        """Write the events in order; when this returns they survive a power cut.

        Raises:
            StorageFull: there is no space; segments already whole stay.
            ReadOnlyHome: the folder has become read-only.
            SinkError: the file system failed in another way.
        """
        with self._lock, self._errors():
            for segment in self._segments(events):
                self._write(segment)

    def close(self) -> None:
        """There is nothing to give up."""

    def _segments(self, events: Iterable[CloudEvent]) -> Iterator[list[bytes]]:
        segment: list[bytes] = []
        size = 0
        for event in events:
            line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
            if segment and size + len(line) > self._max_segment_bytes:
                yield segment
                segment, size = [], 0
            segment.append(line)
            size += len(line)
        if segment:
            yield segment

    def _write(self, lines: list[bytes]) -> None:
        part, target, file = self._create()
        try:
            with file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
                # Renamed while locked: nobody may take it for abandoned.
                part.rename(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        folder = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _create(self) -> tuple[Path, Path, BinaryIO]:
        """A new hidden file, and the name it shall have; neither was there before."""
        while True:
            name = self._name()
            part, target = self.directory / f".{name}{_PART}", self.directory / name
            try:
                file = part.open("xb")
            except FileExistsError:
                continue
            if not target.exists():
                return part, target, file
            file.close()
            part.unlink()

    def _name(self) -> str:
        self._last_ms = max(self._now_ms(), self._last_ms + 1)
        moment = _EPOCH + timedelta(milliseconds=self._last_ms)
        stamp = f"{moment:{_STAMP}}.{moment.microsecond // 1000:03d}Z"
        return f"{stamp}-{os.getpid():07d}-{next(self._numbers):06d}.jsonl"

    def _remove_abandoned(self) -> None:
        for part in self.directory.glob(f".*{_PART}"):
            # Gone, or locked by its writer: either way not ours to remove.
            with suppress(FileNotFoundError, BlockingIOError), part.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where, what = f"the events' folder {self.directory}", error.strerror or str(error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    f"no space left for {where}; free some: the events wait in the outbox"
                ) from error
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise ReadOnlyHome(
                    f"{where} cannot be written: {what}; make it writable, or name another "
                    "in `events` of the settings"
                ) from error
            if error.errno in (errno.EEXIST, errno.ENOTDIR):
                raise ConfigError(
                    f"{where} is not a folder; check `events` in the settings"
                ) from error
            raise SinkError(f"{where}: {what}; the events wait in the outbox") from error


def _time_in(name: str) -> int:
    """When the segment of that name was begun, in ms since 1970; 0 if it is no segment's."""
    seconds, _, rest = name.partition(".")
    try:
        moment = datetime.strptime(seconds, _STAMP).replace(tzinfo=UTC)
        return int(moment.timestamp()) * 1000 + int(rest[:3])
    except ValueError:
        return 0
