"""What kind of trouble an exception from a signal is."""

import re
from enum import Enum, auto

import torch

# torch 2.4 has it under torch.cuda only.
_OUT_OF_MEMORY: tuple[type[BaseException], ...] = (
    MemoryError,
    getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError),
)
_MEMORY_WORDS = re.compile(
    r"not enough memory|can't allocate memory|out of memory|ALLOC_FAILED", re.IGNORECASE
)
_DEVICE_WORDS = re.compile(
    r"CUDA error|device-side assert|CUDA driver error|HIP error"
    r"|CUDNN_STATUS_EXECUTION_FAILED|CUBLAS_STATUS_EXECUTION_FAILED"
)


class Fault(Enum):
    """How to go on after an exception."""

    MEMORY = auto()
    DEVICE = auto()
    IMAGE = auto()


def fault_of(error: BaseException) -> Fault:
    """Whether ``error`` is want of memory, a broken device, or some image's or the code's."""
    if isinstance(error, _OUT_OF_MEMORY):
        return Fault.MEMORY
    message = str(error)
    if isinstance(error, RuntimeError):
        # Memory first: a failed cudaMalloc says "CUDA error: out of memory" and harms nothing.
        if _MEMORY_WORDS.search(message):
            return Fault.MEMORY
        if _DEVICE_WORDS.search(message):
            return Fault.DEVICE
    return Fault.IMAGE
