"""The batch engine: signals on a device, one answer an image, whatever happens.

What may go wrong with a batch, and what it costs:

* *An image makes the signal raise*: the batch is halved until the culprit stands
  alone; it alone fails, the others get the values they would have got anyway.
* *Memory does not suffice*: the batch is halved too, and the size that worked is kept
  for that signal. After some batches without trouble it is doubled again, later each time it
  turns out too much. Only one image that does not fit by itself has failed.
* *A value is NaN or infinite*: that image has failed.
* *The signal breaks its contract* (shape, dtype, count): every image of the batch has
  failed, and the message says what to correct.
* *The GPU's context is broken*: :class:`~pinq.errors.DeviceLost` is raised, since
  nothing more can be computed in this process.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from pinq.config import WorkerSettings
from pinq.errors import DeviceLost, FailureClass, SignalError
from pinq.inference.answers import Answer, ContractBroken, answers_of
from pinq.inference.device import resolve_device, share_cores
from pinq.inference.faults import Fault, fault_of
from pinq.queue.model import Failure
from pinq.signals.contract import Signal

logger = logging.getLogger(__name__)

# On a CPU a batch is computed in parts that stay in its cache, and whose memory is
# used again: a fresh batch of 64 images at 512×512 is 12,000 page faults.
CPU_PART_BYTES = 8 * 1024 * 1024


class Engine:
    """Computes signals on batches of images. Safe to use from several threads.

    Args:
        signals: what will be computed; each is loaded once, here.
        worker: the device and torch's threads.
        clock: milliseconds since 1970.

    Raises:
        ConfigError: the device asked for is not there.
        SignalError: a signal could not be loaded.
    """

    def __init__(
        self,
        signals: Sequence[Signal],
        worker: WorkerSettings,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.device = resolve_device(worker.device)
        share_cores(worker, self.device)
        self._clock = clock
        self._local = threading.local()
        self._limits = {id(signal): _Limit() for signal in signals}
        self._signals = tuple(signals)  # kept, so that no id is used again
        for signal in signals:
            try:
                signal.load(self.device)
            except Exception as error:
                raise SignalError(
                    f"{signal.name}@{signal.version} cannot be loaded on {self.device}: "
                    f"{_told(error)}"
                ) from error

    def compute(self, signal: Signal, images: Sequence[torch.Tensor]) -> list[Answer]:
        """Compute one signal on a batch.

        Args:
            signal: one of those the engine was made with.
            images: uint8 ``[3, H, W]`` each, RGB, in the CPU's memory, of the size that
                ``signal.input`` names.

        Returns:
            A value or a failure for each image, in order. Failures are ``model_error``
            or ``out_of_memory``.

        Raises:
            SignalError: the engine was not made with this signal.
            DeviceLost: the GPU can compute nothing more in this process.
        """
        limit = self._limits.get(id(signal))
        if limit is None:
            raise SignalError(f"{signal.name}: this engine was made without that signal")
        answers: list[Answer | None] = [_misfit(signal, image) for image in images]
        fitting = [index for index, answer in enumerate(answers) if answer is None]
        at = 0
        while at < len(fitting):
            part = fitting[at : at + self._part_size(signal, limit)]
            at += len(part)
            found = self._isolate(signal, limit, [images[index] for index in part])
            for index, answer in zip(part, found, strict=True):
                answers[index] = answer
        return [answer for answer in answers if answer is not None]

    def _part_size(self, signal: Signal, limit: "_Limit") -> int:
        wanted = limit.size
        if self.device.type == "cpu":
            wanted = min(wanted, CPU_PART_BYTES // (3 * signal.input.height * signal.input.width))
        return max(1, wanted)

    def _isolate(
        self, signal: Signal, limit: "_Limit", images: Sequence[torch.Tensor]
    ) -> list[Answer]:
        """Compute, and halve the batch as long as it fails."""
        count = len(images)
        fault, told = Fault.IMAGE, ""
        try:
            answers = self._forward(signal, images)
        except ContractBroken as error:
            return [Failure(FailureClass.MODEL_ERROR, str(error))] * count
        except Exception as error:  # a signal's code may raise anything
            fault, told = fault_of(error), _told(error)
            if fault is Fault.DEVICE:
                raise DeviceLost(
                    f"{signal.name}@{signal.version} on {self.device}: {told}; "
                    "nothing more can be computed in this process, start a new one"
                ) from error
        else:
            limit.worked(count)
            return answers
        # Outside of the handler: its exception held the failed batch's memory.
        if fault is Fault.MEMORY:
            self._drop_memory()
            limit.too_much(count)
            logger.warning(
                "inference.out_of_memory signal=%s version=%d batch=%d device=%s",
                signal.name,
                signal.version,
                count,
                self.device,
            )
        if count == 1:
            kind = FailureClass.OUT_OF_MEMORY if fault is Fault.MEMORY else FailureClass.MODEL_ERROR
            return [Failure(kind, f"{signal.name}@{signal.version}: {told}")]
        half = count // 2
        return [
            *self._isolate(signal, limit, images[:half]),
            *self._isolate(signal, limit, images[half:]),
        ]

    def _forward(self, signal: Signal, images: Sequence[torch.Tensor]) -> list[Answer]:
        with torch.inference_mode():
            batch = self._staged(images)
            try:
                computed = signal.compute(batch)
                return answers_of(signal, computed, len(images), self._clock())
            finally:
                # Where this raised early, the copy out of the staging buffer may still run.
                if self.device.type == "cuda":
                    torch.cuda.current_stream(self.device).synchronize()

    def _staged(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """The images as one batch on the device, through one buffer of this thread's."""
        if len(images) == 1 and self.device.type == "cpu" and images[0].is_contiguous():
            return images[0].unsqueeze(0)
        shape = (len(images), *images[0].shape)
        size = len(images) * images[0].numel()
        buffer: torch.Tensor | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.numel() < size:
            self._local.buffer = None
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            self._local.buffer = buffer
        batch = torch.stack(list(images), out=buffer[:size].view(shape))
        if self.device.type == "cpu":
            return batch
        return batch.to(self.device, non_blocking=self.device.type == "cuda")

    def _drop_memory(self) -> None:
        """Give back what torch holds in reserve, so that a smaller batch finds room."""
        self._local.buffer = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()


@dataclass(slots=True)
class _Limit:
    """How many images of one signal fit in memory, as far as is known."""

    size: int = 1 << 30
    patience: int = 32
    successes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def too_much(self, count: int) -> None:
        with self.lock:
            if count <= self.size:
                self.size = max(1, count // 2)
            self.patience = min(2 * self.patience, 4096)
            self.successes = 0

    def worked(self, count: int) -> None:
        with self.lock:
            if count < self.size:
                return
            self.successes += 1
            if self.successes >= self.patience:
                self.size *= 2
                self.successes = 0


def _misfit(signal: Signal, image: torch.Tensor) -> Failure | None:
    expected = (3, signal.input.height, signal.input.width)
    if image.shape == expected and image.dtype == torch.uint8:
        return None
    return Failure(
        FailureClass.MODEL_ERROR,
        f"{signal.name}@{signal.version} wants uint8 {list(expected)}, "
        f"and was handed {str(image.dtype).removeprefix('torch.')} {list(image.shape)}",
    )


def _told(error: BaseException) -> str:
    """An exception as one line."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return f"{name}: {lines[0][:500]}" if lines else name
