"""A batch in slices.

On a CPU the built-in signals work on a few images at a time: fresh memory for
intermediate values of a whole batch costs more in page faults than the arithmetic.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sliced(images: "torch.Tensor", size: int) -> list["torch.Tensor"]:
    """``images`` in parts of at most ``size``, without copying."""
    return [images[start : start + size] for start in range(0, len(images), size)]
