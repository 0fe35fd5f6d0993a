"""Where signals are computed: which device, with how many threads."""

import os

import torch

from pinq.config import WorkerSettings
from pinq.errors import ConfigError


def resolve_device(asked: str) -> torch.device:
    """The device that ``worker.device`` means on this machine.

    ``auto`` is a CUDA GPU if there is one, else Apple's, else the CPU.

    Raises:
        ConfigError: a device was asked for that this machine, or this torch, has not.
    """
    if asked == "auto":
        asked = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    kind, _, index = asked.partition(":")
    if kind == "cuda":
        if not torch.cuda.is_available():
            why = (
                "torch finds no GPU or driver (nvidia-smi tells which)"
                if torch.version.cuda
                else f"torch {torch.__version__} is built without CUDA"
            )
            raise ConfigError(
                f'worker.device = "{asked}", but {why}; '
                'install what is missing, or set worker.device = "auto" or "cpu"'
            )
        count = torch.cuda.device_count()
        if index and int(index) >= count:
            raise ConfigError(
                f'worker.device = "{asked}", but this machine has {count} GPU(s), '
                f"cuda:0 to cuda:{count - 1}"
            )
        return torch.device("cuda", int(index or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            'worker.device = "mps", but torch finds no Metal GPU here; '
            'set worker.device = "auto" or "cpu"'
        )
    return torch.device(kind)


def share_cores(worker: WorkerSettings, device: torch.device) -> None:
    """Give torch its part of the cores, so that the worker's threads do not crowd each other.

    ``worker.torch_threads`` if it is set; else, on a CPU, the cores this process may use
    divided by ``worker.threads``.
    """
    if worker.torch_threads:
        torch.set_num_threads(worker.torch_threads)
    elif device.type == "cpu":
        torch.set_num_threads(max(1, _cores() // worker.threads))


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
