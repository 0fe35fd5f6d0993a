"""``pinq.runtime.run`` where its threads race."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pinq.config import load
from pinq.queue.model import Enqueued, NewJob
from pinq.queue.sql import SqlQueue
from pinq.runtime import run


def test_images_enqueued_between_two_looks_are_not_left_behind(
    tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()
    enqueue, unfinished = SqlQueue.enqueue, SqlQueue.unfinished

    def enqueue_late(
        queue: SqlQueue, name: str, jobs: Sequence[NewJob], **options: Any
    ) -> list[Enqueued]:
        assert looked.wait(60)
        return enqueue(queue, name, jobs, **options)

    def answer_late(queue: SqlQueue, *arguments: Any, **options: Any) -> bool:
        found = unfinished(queue, *arguments, **options)
        looked.set()
        for thread in threading.enumerate():
            if thread.name == "pinq-intake":
                thread.join(60)
        return found

    monkeypatch.setattr(SqlQueue, "enqueue", enqueue_late)
    monkeypatch.setattr(SqlQueue, "unfinished", answer_late)
    report = run(load(None, str(tmp_path / "home")), [str(photos[0])])
    assert (report.succeeded, report.dead) == (1, 0)
