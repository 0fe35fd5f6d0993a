"""The batch engine: one answer an image, in order, whatever a signal does."""

import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from pinq.config import WorkerSettings
from pinq.errors import ConfigError, DeviceLost, FailureClass, SignalError
from pinq.inference.engine import Engine
from pinq.queue.model import Failure
from pinq.signals.contract import Computed, ImageInput, Signal
from pinq.store.contract import SignalValue

CPU = WorkerSettings(device="cpu", torch_threads=1)


class Probe(Signal):
    """The first byte of each image; ``before`` may object to a batch."""

    name = "probe"
    version = 3
    input = ImageInput(height=4, width=4)
    dtype = "float32"
    shape = (2,)

    def __init__(self, before: Callable[[list[int]], object] = lambda seen: None) -> None:
        self.before = before
        self.batches: list[list[int]] = []
        self.loads = 0

    def load(self, device: torch.device) -> None:
        self.loads += 1

    def compute(self, images: torch.Tensor) -> Computed:
        seen = images[:, 0, 0, 0].tolist()
        self.batches.append(seen)
        self.before(seen)
        first = images[:, 0, 0, 0].float()
        return Computed(torch.stack([first, -first], 1), {"first": seen})


def image(value: int) -> torch.Tensor:
    return torch.full((3, 4, 4), value, dtype=torch.uint8)


def images(count: int) -> list[torch.Tensor]:
    return [image(value) for value in range(count)]


def engine_of(signal: Signal, worker: WorkerSettings = CPU) -> Engine:
    return Engine([signal], worker, clock=lambda: 1234)


def firsts(answers: list[SignalValue | Failure]) -> list[float | None]:
    """The first number of each value; None for a failure."""
    return [
        struct.unpack("<2f", answer.data)[0] if isinstance(answer, SignalValue) else None
        for answer in answers
    ]


def failures(answers: list[SignalValue | Failure]) -> dict[int, Failure]:
    return {i: answer for i, answer in enumerate(answers) if isinstance(answer, Failure)}


def test_each_image_has_its_answer_in_order() -> None:
    signal = Probe()
    answers = engine_of(signal).compute(signal, images(5))
    assert firsts(answers) == [0, 1, 2, 3, 4]
    assert answers[2] == SignalValue(
        "float32", (2,), struct.pack("<2f", 2.0, -2.0), 1234, {"first": 2}
    )


def test_no_images_have_no_answers() -> None:
    signal = Probe()
    assert engine_of(signal).compute(signal, []) == []


def test_a_signal_is_loaded_once_however_many_threads_compute() -> None:
    signal = Probe()
    engine = engine_of(signal)
    gate = threading.Barrier(4)

    def work(start: int) -> list[float | None]:
        gate.wait(10)
        mine = [image((start + k) % 256) for k in range(40)]
        return [v for _ in range(20) for v in firsts(engine.compute(signal, mine))]

    with ThreadPoolExecutor(4) as pool:
        for start, found in zip((0, 50, 100, 150), pool.map(work, (0, 50, 100, 150)), strict=True):
            assert found == [float(start + k) for k in range(40)] * 20
    assert signal.loads == 1


@pytest.mark.parametrize("culprits", [{0}, {6}, {3, 4}, {0, 1, 2, 3, 4, 5, 6}])
def test_an_image_that_makes_the_signal_raise_costs_its_batch_mates_nothing(
    culprits: set[int],
) -> None:
    def object_to(seen: list[int]) -> None:
        if culprits & set(seen):
            raise ValueError("bad weather\nsecond line")

    signal = Probe(object_to)
    answers = engine_of(signal).compute(signal, images(7))
    assert firsts(answers) == [None if v in culprits else v for v in range(7)]
    expected = Failure(FailureClass.MODEL_ERROR, "probe@3: ValueError: bad weather")
    assert failures(answers) == dict.fromkeys(sorted(culprits), expected)


def limited(most: int, error: Exception) -> Callable[[list[int]], None]:
    def refuse(seen: list[int]) -> None:
        if len(seen) > most:
            raise error

    return refuse


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_batch_too_large_for_memory_is_halved_until_it_fits(error: Exception) -> None:
    signal = Probe(limited(3, error))
    answers = engine_of(signal).compute(signal, images(16))
    assert firsts(answers) == list(range(16))


def test_the_size_that_fits_is_remembered_and_tried_again_only_after_long_success() -> None:
    signal = Probe(limited(4, MemoryError()))
    engine = engine_of(signal)
    engine.compute(signal, images(16))
    signal.batches.clear()
    for _ in range(10):
        engine.compute(signal, images(16))
    assert {len(batch) for batch in signal.batches} == {4}
    signal.before = lambda seen: None  # memory is free again
    for _ in range(200):
        engine.compute(signal, images(16))
    assert len(signal.batches[-1]) == 16


def test_only_an_image_that_does_not_fit_alone_is_out_of_memory() -> None:
    def refuse(seen: list[int]) -> None:
        if 5 in seen:
            raise MemoryError("no room")

    signal = Probe(refuse)
    answers = engine_of(signal).compute(signal, images(8))
    assert firsts(answers) == [0, 1, 2, 3, 4, None, 6, 7]
    assert failures(answers) == {
        5: Failure(FailureClass.OUT_OF_MEMORY, "probe@3: MemoryError: no room")
    }


@pytest.mark.parametrize(
    "words",
    ["CUDA error: device-side assert triggered", "CUDA error: an illegal memory access was met"],
)
def test_a_broken_device_is_raised_and_no_culprit_is_sought(words: str) -> None:
    signal = Probe(limited(0, RuntimeError(words)))
    with pytest.raises(DeviceLost, match="start a new one"):
        engine_of(signal).compute(signal, images(8))
    assert len(signal.batches) == 1


class Fixed(Probe):
    """Answers whatever it is told."""

    def __init__(self, answer: Callable[[int], object]) -> None:
        super().__init__()
        self.answer = answer

    def compute(self, images: torch.Tensor) -> Computed:
        self.batches.append([])
        return self.answer(len(images))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n: None, "returned NoneType, not Computed"),
        (lambda n: Computed([0.0] * n), "values of list"),  # type: ignore[arg-type]
        (lambda n: Computed(torch.zeros(n, 3)), r"shape \[4, 3\] for 4 image\(s\), not \[4, 2\]"),
        (lambda n: Computed(torch.zeros(1, 2)), r"shape \[1, 2\] for 4 image"),
        (lambda n: Computed(torch.zeros(2)), r"shape \[2\] for 4 image"),
        (lambda n: Computed(torch.zeros(n, 2).double()), "torch.float64, not float32"),
        (lambda n: Computed(torch.zeros(n, 2), {"q": [1]}), "1 of meta 'q' for 4 image"),
        (lambda n: Computed(torch.zeros(n, 2), {"q": [[]] * n}), "meta 'q' of list"),
    ],
)
def test_a_signal_that_breaks_its_contract_fails_with_a_word_on_what_to_correct(
    answer: Callable[[int], object], words: str
) -> None:
    signal = Fixed(answer)
    found = engine_of(signal).compute(signal, images(4))
    assert len(failures(found)) == 4
    assert {f.failure_class for f in failures(found).values()} == {FailureClass.MODEL_ERROR}
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(failures(found)[0].message)
    assert len(signal.batches) == 1  # halving would not help


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_fails_its_image_alone(bad: float) -> None:
    def answer(count: int) -> Computed:
        values = torch.zeros(count, 2)
        values[1, 1] = bad
        return Computed(values, {"score": [0.5, 0.5, bad, 0.5]})

    signal = Fixed(answer)
    found = engine_of(signal).compute(signal, images(4))
    assert sorted(failures(found)) == [1, 2]
    assert "NaN or infinity" in failures(found)[1].message


def test_scalars_of_torch_in_meta_become_pythons_own() -> None:
    def answer(count: int) -> Computed:
        whole: Any = torch.arange(count)
        return Computed(torch.zeros(count, 2), {"a": whole, "b": list(torch.ones(count).unbind())})

    signal = Fixed(answer)
    (found, *_) = engine_of(signal).compute(signal, images(3))
    assert isinstance(found, SignalValue)
    assert {key: type(value) for key, value in found.meta.items()} == {"a": int, "b": float}


def test_an_image_of_the_wrong_size_or_type_fails_alone() -> None:
    signal = Probe()
    batch = [image(1), torch.zeros(3, 5, 4, dtype=torch.uint8), image(2).float(), image(3)]
    found = engine_of(signal).compute(signal, batch)
    assert firsts(found) == [1, None, None, 3]
    assert "wants uint8 [3, 4, 4], and was handed float32 [3, 4, 4]" in failures(found)[2].message


def test_images_that_are_not_contiguous_are_computed_right() -> None:
    signal = Probe()
    channels_last = torch.arange(48, dtype=torch.uint8).view(4, 4, 3).permute(2, 0, 1)
    found = engine_of(signal).compute(signal, [channels_last + 9, channels_last])
    assert firsts(found) == [9, 0]


def test_a_value_survives_the_next_batch_though_its_memory_is_used_again() -> None:
    class Echo(Probe):
        dtype = "uint8"

        def compute(self, images: torch.Tensor) -> Computed:
            return Computed(images[:, 0, 0, :2])

    signal = Echo()
    engine = engine_of(signal)
    first = engine.compute(signal, images(4))
    engine.compute(signal, [image(200)] * 4)
    assert [a.data for a in first if isinstance(a, SignalValue)] == [
        bytes([v, v]) for v in range(4)
    ]


def test_a_signal_that_the_engine_was_not_made_with_is_refused() -> None:
    with pytest.raises(SignalError, match="without that signal"):
        engine_of(Probe()).compute(Probe(), images(1))


def test_a_signal_that_cannot_be_loaded_is_named() -> None:
    class Unloadable(Probe):
        def load(self, device: torch.device) -> None:
            raise FileNotFoundError("weights.pt is missing")

    with pytest.raises(SignalError, match=r"probe@3 cannot be loaded on cpu: .*weights\.pt"):
        engine_of(Unloadable())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_asked_for_but_absent_is_an_error_of_the_settings(device: str) -> None:
    with pytest.raises(ConfigError, match=rf'worker.device = "{device}", but .*CUDA'):
        engine_of(Probe(), replace(CPU, device=device))


def test_auto_takes_what_is_there() -> None:
    device = engine_of(Probe(), replace(CPU, device="auto")).device
    assert device.type == ("cuda" if torch.cuda.is_available() else device.type)
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_values_on_a_gpu_are_those_of_the_cpu() -> None:
    from pinq.signals.pdq import Pdq

    torch.manual_seed(0)
    batch = [
        torch.nn.functional.interpolate(
            torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8), (512, 512), mode="bilinear"
        )[0]
        for _ in range(9)
    ]
    found = []
    for device in ("cpu", "cuda"):
        signal = Pdq()
        found.append(engine_of(signal, replace(CPU, device=device)).compute(signal, batch))
    assert found[0] == found[1]
