"""What a signal is: a named, versioned function from an image to a value.

A signal subclasses :class:`Signal`, sets its class attributes and computes on
batches. Torch is imported by the worker only, so a module that defines a
signal may be read (for its version, or to render a value) where torch is not
installed: import torch inside the methods, or under ``TYPE_CHECKING``.

Example::

    class Brightness(Signal):
        name = "brightness"
        version = 1
        input = ImageInput(height=64, width=64)
        dtype = "float32"
        shape = (1,)

        def compute(self, images):
            return Computed(images.float().mean(dim=(1, 2, 3)).unsqueeze(1) / 255)
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The pixels a signal wants: RGB, uint8, ``height`` × ``width``.

    ``fit="stretch"`` resizes to exactly that size, whatever the aspect ratio;
    ``fit="crop"`` resizes the shorter side and cuts the centre out.
    """

    height: int
    width: int
    fit: Literal["stretch", "crop"] = "stretch"


@dataclass(frozen=True, slots=True)
class Computed:
    """A batch's answers.

    ``values`` is a tensor ``[B, *shape]`` of the signal's dtype; each sequence
    in ``meta`` has B scalars (int, float, str), one an image.
    """

    values: "torch.Tensor"
    meta: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Signal(ABC):
    """One signal. The worker makes one instance a process and device.

    ``name`` and ``version`` are what values are stored under: raise the version
    whenever the same image would get another value. The settings may give an instance a
    name and a version of its own. ``dtype`` is numpy's name of one of ``bool``, ``int8`` to
    ``int64``, ``uint8`` to ``uint64``, ``float16`` to ``float64``; ``shape`` is one image's.
    """

    name: str
    version: int
    input: ImageInput
    dtype: str
    shape: tuple[int, ...]

    def load(self, device: "torch.device") -> None:  # noqa: B027
        """Put constants or a model onto ``device``; called once, before ``compute``."""

    @abstractmethod
    def compute(self, images: "torch.Tensor") -> Computed:
        """Compute a batch.

        Args:
            images: uint8 ``[B, 3, height, width]``, RGB, on the device of ``load``;
                B varies from call to call. Its memory is used again for the next
                batch: neither keep it nor return a part of it from a later call. Called
                from several threads at once, under ``torch.inference_mode``.
        """

    def render(self, data: bytes, meta: Mapping[str, Any]) -> dict[str, Any]:
        """A stored value as JSON, as ``pinq get`` shows it."""
        return render_array(self.dtype, self.shape, data, meta)


#: What a signal's dtype may be, and the letter that ``struct`` has for it.
DTYPES = {
    "bool": "?",
    "int8": "b",
    "uint8": "B",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float16": "e",
    "float32": "f",
    "float64": "d",
}


def unpack(dtype: str, shape: tuple[int, ...], data: bytes) -> list[Any]:
    """The values of an array as a flat list, without numpy."""
    return list(struct.unpack(f"<{prod(shape)}{DTYPES[dtype]}", data))


def render_array(
    dtype: str, shape: tuple[int, ...], data: bytes, meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Any stored value as JSON: what is shown of a signal whose code is not at hand."""
    return {"dtype": dtype, "shape": list(shape), "data": unpack(dtype, shape, data), **meta}
