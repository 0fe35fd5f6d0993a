"""The way of one batch, with a real store and engine and a signal that can be told to fail."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from pinq.broker import Batch
from pinq.config import MediaSettings, PipelineSettings, WorkerSettings
from pinq.errors import FailureClass, StoreError
from pinq.inference.engine import Engine
from pinq.media.fetch import path_to_uri
from pinq.processing import Processor, backoff_seconds
from pinq.queue.model import Dead, Lease, LeasedJob, Retry, Succeeded
from pinq.signals.contract import Computed, ImageInput, Signal
from pinq.store.contract import SignalKey
from pinq.store.rocksdb import RocksdbStore

if TYPE_CHECKING:
    import torch

PIPELINE = PipelineSettings(galaxy="g", signals=("mean",), backoff_seconds=4.0)


class Mean(Signal):
    """The mean of an image; refuses an image of which it was told."""

    name = "mean"
    version = 1
    input = ImageInput(8, 8)
    dtype = "float32"
    shape = (1,)

    def __init__(self) -> None:
        self.computed = 0
        self.refuses: float | None = None

    def compute(self, images: "torch.Tensor") -> Computed:
        means = images.float().mean(dim=(1, 2, 3))
        if self.refuses is not None and (means == self.refuses).any():
            raise ValueError("cannot look at this")
        self.computed += len(images)
        return Computed(means.unsqueeze(1))


class Bench:
    """A processor and what is around it."""

    def __init__(self, folder: Path, pipeline: PipelineSettings = PIPELINE) -> None:
        self.folder = folder
        self.signal = Mean()
        self.store = RocksdbStore(folder / "signals", write=True)
        self.processor = Processor(
            "pins",
            pipeline,
            [self.signal],
            engine=Engine([self.signal], WorkerSettings(device="cpu")),
            store=self.store,
            media=MediaSettings(),
            load_all=map,
            patience_seconds=0,
            stop=threading.Event(),
        )

    def image(self, name: str, grey: int) -> str:
        path = self.folder / f"{name}.png"
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)
        return path_to_uri(path)

    def job(self, key: str, uri: str, **fields: object) -> LeasedJob:
        job = LeasedJob(
            id=len(key) * 1000 + ord(key[0]),
            key=key,
            uri=uri,
            verify=False,
            etag="",
            force=False,
            enqueued_at_ms=2**50,
            attempt=1,
            max_attempts=5,
        )
        return job._replace(**fields)

    def process(self, *jobs: LeasedJob) -> Batch:
        batch = Batch(Lease("1-x", "pins", 0, jobs))
        self.processor.process(batch)
        return batch

    def stored(self, key: str) -> bool:
        return self.store.get([SignalKey("g", "mean", 1, key)]) != [None]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def test_each_image_is_computed_stored_and_announced(bench: Bench) -> None:
    batch = bench.process(*(bench.job(k, bench.image(k, 9)) for k in "abc"))
    answers = batch.answers()
    assert len(answers) == 3 and batch.unanswered() == []
    for answer, key in zip(answers, "abc", strict=True):
        assert isinstance(answer, Succeeded) and answer.event
        assert answer.event.type == "pinq.signal.computed"
        assert answer.event.source == "/pinq/g"
        assert answer.event.subject == key
        assert answer.event.data["signals"] == {"mean": 1}
        assert bench.stored(key)


def test_one_bad_image_costs_its_batch_mates_nothing(bench: Bench, tmp_path: Path) -> None:
    bench.signal.refuses = 66.0
    (tmp_path / "b.png").write_bytes(b"no image at all")
    batch = bench.process(
        bench.job("a", bench.image("a", 1)),
        bench.job("b", path_to_uri(tmp_path / "b.png")),
        bench.job("c", path_to_uri(tmp_path / "gone.png")),
        bench.job("d", bench.image("d", 66)),
        bench.job("e", bench.image("e", 2)),
    )
    a, b, c, d, e = batch.answers()
    assert isinstance(a, Succeeded) and isinstance(e, Succeeded)
    assert isinstance(b, Dead) and b.failure.failure_class is FailureClass.UNDECODABLE
    assert isinstance(c, Dead) and c.failure.failure_class is FailureClass.FETCH_GONE
    assert isinstance(d, Retry) and d.failure.failure_class is FailureClass.MODEL_ERROR
    assert 2.0 <= d.delay_seconds <= 4.0
    assert [bench.stored(k) for k in "abcde"] == [True, False, False, False, True]


def test_what_is_stored_already_is_neither_fetched_nor_computed_nor_announced(
    bench: Bench,
) -> None:
    uri = bench.image("a", 9)
    bench.process(bench.job("a", uri))
    (answer,) = bench.process(bench.job("a", "file:///gone.png")).answers()
    assert answer == Succeeded(answer.id, None)
    assert bench.signal.computed == 1


def test_force_computes_again(bench: Bench) -> None:
    uri = bench.image("a", 9)
    bench.process(bench.job("a", uri))
    (answer,) = bench.process(bench.job("a", uri, force=True)).answers()
    assert isinstance(answer, Succeeded) and answer.event
    assert bench.signal.computed == 2


@pytest.mark.parametrize("known_by", [{"attempt": 2}, {"enqueued_at_ms": 0}])
def test_what_an_attempt_stored_before_it_died_is_announced_by_the_next(
    known_by: dict[str, int], bench: Bench
) -> None:
    uri = bench.image("a", 9)
    bench.process(bench.job("a", uri))
    (answer,) = bench.process(bench.job("a", uri, **known_by)).answers()
    assert isinstance(answer, Succeeded) and answer.event
    assert answer.event.data["signals"] == {"mean": 1}
    assert bench.signal.computed == 1


def test_a_pipeline_may_announce_what_is_unchanged(tmp_path: Path) -> None:
    bench = Bench(tmp_path, PipelineSettings(galaxy="g", announce_unchanged=True))
    uri = bench.image("a", 9)
    bench.process(bench.job("a", uri))
    (answer,) = bench.process(bench.job("a", uri)).answers()
    assert isinstance(answer, Succeeded) and answer.event
    bench.store.close()


def test_bytes_that_changed_since_they_were_signed_are_refused(bench: Bench) -> None:
    uri = bench.image("a", 9)
    (answer,) = bench.process(bench.job("a", uri, verify=True, etag="then")).answers()
    assert isinstance(answer, Dead)
    assert answer.failure.failure_class is FailureClass.SIGNATURE_MISMATCH
    assert not bench.stored("a")


def test_an_error_of_the_store_abandons_the_batch_and_answers_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(items: object) -> None:
        raise StoreError("gone")

    monkeypatch.setattr(bench.store, "put", put)
    batch = bench.process(bench.job("a", bench.image("a", 9)))
    assert isinstance(batch.error, StoreError)
    assert batch.answers() == []


def test_retries_wait_ever_longer_up_to_a_limit() -> None:
    pipeline = PipelineSettings(backoff_seconds=1.0, backoff_max_seconds=10.0)
    longest = [backoff_seconds(pipeline, n, lambda low, high: high) for n in range(1, 7)]
    shortest = [backoff_seconds(pipeline, n, lambda low, high: low) for n in range(1, 7)]
    assert longest == [1, 2, 4, 8, 10, 10]
    assert shortest == [0.5, 1, 2, 4, 5, 5]
