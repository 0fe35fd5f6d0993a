"""From what a signal computed to stored values, each checked against the signal's word."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pinq.errors import FailureClass, SignalError
from pinq.queue.model import Failure
from pinq.signals.contract import Computed, Signal
from pinq.store.contract import SignalValue

Answer = SignalValue | Failure


class ContractBroken(SignalError):
    """What was computed is not what the signal promised."""


def answers_of(signal: Signal, computed: Computed, count: int, now_ms: int) -> list[Answer]:
    """One answer an image, in order.

    A value with NaN or infinity is that image's failure alone.

    Raises:
        ContractBroken: what was computed is not what the signal promised.
    """
    values = _checked_values(signal, computed, count)
    meta = _checked_meta(signal, computed.meta, count)
    bad: set[int] = set()
    if values.is_floating_point():
        finite = values.isfinite().reshape(count, -1).all(1)
        bad.update((~finite).nonzero().flatten().tolist())
    bad.update(
        index
        for column in meta.values()
        for index, value in enumerate(column)
        if isinstance(value, float) and value - value != 0.0
    )

    array = values.contiguous().cpu().numpy()
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    size = len(data) // count
    return [
        Failure(
            FailureClass.MODEL_ERROR,
            f"{signal.name}@{signal.version} computed NaN or infinity for this image",
        )
        if index in bad
        else SignalValue(
            dtype=signal.dtype,
            shape=signal.shape,
            data=data[index * size : (index + 1) * size],
            computed_at_ms=now_ms,
            meta={key: column[index] for key, column in meta.items()},
        )
        for index in range(count)
    ]


def _checked_values(signal: Signal, computed: Any, count: int) -> torch.Tensor:
    if not isinstance(computed, Computed):
        raise _broken(signal, f"returned {type(computed).__name__}, not Computed")
    values = computed.values
    if not isinstance(values, torch.Tensor):
        raise _broken(signal, f"returned values of {type(values).__name__}, not a torch.Tensor")
    if values.shape != (count, *signal.shape):
        raise _broken(
            signal,
            f"returned values of shape {list(values.shape)} for {count} image(s), "
            f"not {[count, *signal.shape]}",
        )
    if values.dtype != getattr(torch, signal.dtype):
        raise _broken(signal, f"returned {values.dtype}, not {signal.dtype} as it says")
    return values


def _checked_meta(
    signal: Signal, meta: Mapping[str, Sequence[Any]], count: int
) -> dict[str, list[Any]]:
    checked = {}
    for key, column in meta.items():
        items = column.tolist() if isinstance(column, torch.Tensor) else list(column)
        if len(items) != count:
            raise _broken(signal, f"returned {len(items)} of meta {key!r} for {count} image(s)")
        # A numpy or torch scalar becomes Python's own.
        items = [item.item() if hasattr(item, "item") else item for item in items]
        for item in items:
            if not isinstance(item, (int, float, str)):
                raise _broken(
                    signal,
                    f"returned meta {key!r} of {type(item).__name__}, not int, float or str",
                )
        checked[key] = items
    return checked


def _broken(signal: Signal, what: str) -> ContractBroken:
    return ContractBroken(
        f"{signal.name}@{signal.version} breaks its contract: compute() {what}; "
        f"correct {type(signal).__module__}.{type(signal).__qualname__}"
    )
