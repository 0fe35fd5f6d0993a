"""``pdq@1``: Meta's perceptual hash, exactly as the reference computes it.

The algorithm is Meta's PDQ: *The TMK+PDQF Video-Hashing Algorithm and the PDQ
Image-Hashing Algorithm* (Facebook, 2019) and its reference in C++
(``pdq/cpp`` of facebook/ThreatExchange): luma, two passes of a box filter,
decimation to 64×64, the first 16×16 coefficients of a DCT without the constant
ones, one bit a coefficient for "above the median".

**How it is made fast.** Two box filters of 4 and a decimation by 8 are one filter of
7 taps, ``1 2 3 4 3 2 1``, at every 8th pixel (the window of the last row and
column is cut by the edge: ``3 6 9 13 10 7``). With luma as ``299 R + 587 G + 114 B``
all of it is integer arithmetic that no summation order can change, so
the 64×64 image is the same on any device and in any batch.

**How it is made exact.** The reference works in float32 with running sums, so
its coefficients carry rounding errors of up to 4e-3. A bit whose coefficient is
closer to the median than that is decided by the reference's errors, not by the
image. Such images (about one photograph in twenty, and most blank ones) are
found by bounding those errors, and hashed again by repeating the reference's
float32 operations one by one: :func:`replay`. The bounds are measured with a margin,
not proven; where they held, and they did on every image tried, hash and quality are
those of the reference on x86-64, to the bit. A reference built with fused
multiply-add (as compilers do for ARM) differs from it on such images.
"""

import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pinq.signals.contract import Computed, ImageInput, Signal
from pinq.signals.slices import sliced

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

SIDE = 512
BLOCKS = 64
FREQUENCIES = 16

# Pixel 8i+2+k has weight TAPS[k] in cell i of the 64; the sums are 16 and 48.
TAPS = (1, 2, 3, 4, 3, 2, 1)
LAST_TAPS = (3, 6, 9, 13, 10, 7)
LUMA = (299, 587, 114)

# Bounds on the float32 errors of the reference. Measured on 800 photographs, noise,
# ramps and flat images: coefficient (i, j) is off by at most 0.0084 / (1 + min(i, j)),
# the step between neighbouring cells by at most 6e-4.
COEFFICIENT_ERROR = 0.012
STEP_ERROR = 8e-4

REPLAY_SLICE = 8


def dct_rows() -> list[list[float]]:
    """The 16×64 DCT matrix, rows 1 to 16, before rounding to float32.

    The scale is rounded first, as in the reference; it is exact there too, or nearly.
    """
    scale = struct.unpack("f", struct.pack("f", math.sqrt(2 / BLOCKS)))[0]
    step = math.pi / 2 / BLOCKS
    return [
        [scale * math.cos(step * i * (2 * j + 1)) for j in range(BLOCKS)]
        for i in range(1, FREQUENCIES + 1)
    ]


class Pdq(Signal):
    """The 256-bit PDQ hash, and PDQ's quality (0 to 100) as ``meta["quality"]``.

    The hash is 32 bytes, most significant bit first; ``data.hex()`` is the
    string of 64 digits that ThreatExchange prints and exchanges, and
    ``numpy.packbits(pdqhash.compute(image)[0])`` the same bytes. Two images match,
    by Meta's advice, at a Hamming distance of 31 or less and qualities of 50 or more.
    """

    name = "pdq"
    version = 1
    input = ImageInput(height=SIDE, width=SIDE)
    dtype = "uint8"
    shape = (32,)

    def load(self, device: "torch.device") -> None:
        import torch

        # Apple's GPUs have no float64: there, all that follows the first pass runs on the CPU.
        self._tail = torch.device("cpu") if device.type == "mps" else device
        self._slice = 4 if device.type == "cpu" else 64

        def constant(values: Any) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64, device=self._tail)

        # 64 pixels of a row give 8 cells; the 9th column is what
        # their first pixel gives to the last cell of the 64 pixels before.
        across = [[0.0] * 9 for _ in range(64)]
        for cell in range(8):
            for k, weight in enumerate(TAPS):
                if (pixel := 8 * cell + 2 + k) < 64:
                    across[pixel][cell] = weight
        across[0][8] = TAPS[-1]
        self._across = constant(across)
        self._last_across = constant(LAST_TAPS)
        self._last_down = torch.tensor(LAST_TAPS, dtype=torch.int16, device=device).view(6, 1)
        totals = constant([16.0] * 63 + [48.0])
        self._scale = 1 / (totals.view(-1, 1) * totals * 1000)
        self._dct = torch.tensor(dct_rows(), dtype=torch.float32, device=self._tail).double()
        order = torch.arange(FREQUENCIES, device=self._tail)
        nearest = torch.minimum(order.view(-1, 1), order).double()
        self._error = (COEFFICIENT_ERROR / (1 + nearest)).flatten()
        self._bit = (2 ** torch.arange(7, -1, -1, device=self._tail)).to(torch.uint8)

    def compute(self, images: "torch.Tensor") -> Computed:
        """Hash a batch.

        Args:
            images: uint8 ``[B, 3, 512, 512]``, RGB.

        Returns:
            uint8 ``[B, 32]`` and ``quality``, B whole numbers.
        """
        import torch

        # Slices, because fresh memory of a whole batch costs more in page faults
        # than the arithmetic on it.
        parts = [self._fast(part) for part in sliced(images, self._slice)]
        bits, quality, sure = (torch.cat(column) for column in zip(*parts, strict=True))
        unsure = (~sure).nonzero().flatten()
        if len(unsure):
            exact_bits, exact_quality = replay(images[unsure.to(images.device)])
            bits[unsure] = exact_bits.to(bits.device)
            quality[unsure] = exact_quality.to(quality.device)
        # Bit 255 leads in PDQ's canonical string.
        octets = bits.flip(1).view(-1, 32, 8).to(torch.uint8) * self._bit
        hashes = octets.sum(2, dtype=torch.uint8)
        return Computed(hashes, {"quality": quality.tolist()})

    def render(self, data: bytes, meta: Mapping[str, Any]) -> dict[str, Any]:
        """``{"hash": 64 hexadecimal digits, "quality": 0 to 100}``."""
        return {"hash": data.hex(), "quality": meta["quality"]}

    def _fast(
        self, images: "torch.Tensor"
    ) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
        """The bits ``[n, 256]``, the qualities, and whether both are certain."""
        cells = self._cells(images)
        bits, bits_sure = self._bits(cells)
        quality, quality_sure = _quality(cells)
        return bits, quality, bits_sure & quality_sure

    def _cells(self, images: "torch.Tensor") -> "torch.Tensor":
        """The filtered and decimated luma: float64 ``[n, 64, 64]``, 0 to 255."""
        import torch

        count = len(images)
        # Down the columns, in whole numbers of at most 48 * 255.
        sums = images[:, :, 2::8].to(torch.int16)
        row = torch.empty_like(sums)
        for k, weight in enumerate(TAPS[1:-1], start=3):
            sums.add_(row.copy_(images[:, :, k::8]), alpha=weight)
        sums[:, :, :-1].add_(images[:, :, 8::8])
        sums[:, :, -1] = (images[:, :, 506:] * self._last_down).sum(2, dtype=torch.int16)
        # At most 48 * 255 * 1000 < 2**24: whole numbers in float32 too.
        red, green, blue = sums.to(self._tail).float().unbind(1)
        luma = red.mul_(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).double()
        # Along the rows.
        grouped = luma.view(-1, 64) @ self._across
        grouped = grouped.view(count, BLOCKS, 8, 9)
        cells = grouped[..., :8].contiguous()
        cells[:, :, :-1, 7] += grouped[:, :, 1:, 8]
        cells[:, :, -1, 7] = luma[:, :, 506:] @ self._last_across
        return cells.view(count, BLOCKS, BLOCKS).mul_(self._scale)

    def _bits(self, cells: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Each coefficient above the median, and whether float32 agrees for certain."""
        coefficients = (self._dct @ cells @ self._dct.T).flatten(1)
        # torch's median, like Torben's in the reference, is the lower of the middle two.
        bits = coefficients > coefficients.median(dim=1, keepdim=True).values
        above = (coefficients - self._error).masked_fill_(~bits, math.inf).amin(1)
        below = (coefficients + self._error).masked_fill_(bits, -math.inf).amax(1)
        return bits, (above > below) & (bits.sum(1) == 128)


def _quality(cells: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """PDQ's quality, the sum of the clear steps between neighbours, and whether it is certain."""
    import torch

    down = (cells[:, 1:] - cells[:, :-1]).flatten(1)
    right = (cells[:, :, 1:] - cells[:, :, :-1]).flatten(1)
    steps = torch.cat([down, right], 1).abs_().mul_(100 / 255)
    least = (steps - STEP_ERROR).clamp_(min=0).floor_().sum(1)
    most = steps.add_(STEP_ERROR).floor_().sum(1)
    least, most = ((total.long() // 90).clamp_(max=100) for total in (least, most))
    return least, least == most


def replay(images: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """The reference's own float32 operations, in its order: slow, and equal to the bit.

    Args:
        images: uint8 ``[n, 3, 512, 512]``, RGB, on any device.

    Returns:
        bool ``[n, 256]``, a bit a coefficient, row by row; int64 ``[n]``, the qualities.
    """
    import numpy as np
    import torch

    if len(images) > REPLAY_SLICE:
        halves = [replay(part) for part in sliced(images, REPLAY_SLICE)]
        return torch.cat([bits for bits, _ in halves]), torch.cat([q for _, q in halves])

    def turned(image: "Floats") -> "Floats":
        return torch.from_numpy(image).permute(2, 1, 0).contiguous().numpy()

    red, green, blue = images.cpu().double().unbind(1)
    luma = (red * 0.299 + green * 0.587 + blue * 0.114).float()
    # Each pass runs down axis 0 of [column, n, row] or [row, n, column]; after the last
    # two only every 8th line is needed.
    image = _box(luma.permute(2, 0, 1).contiguous().numpy())
    image = _box(turned(image))
    image = _box(turned(image))[4::8]
    image = _box(turned(image))[4::8]

    dct = np.array(dct_rows(), dtype=np.float32)
    half = np.zeros((FREQUENCIES, *image.shape[1:]), np.float32)
    for k in range(BLOCKS):
        half += dct[:, k, None, None] * image[k]
    full = np.zeros((FREQUENCIES, FREQUENCIES, image.shape[1]), np.float32)
    for k in range(BLOCKS):
        full += half[:, None, :, k] * dct[:, k, None]
    coefficients = full.reshape(256, -1)
    bits = coefficients > np.sort(coefficients, axis=0)[127]

    hundred, white = np.float32(100), np.float32(255)
    total = sum(
        np.abs(((near - far) * hundred / white).astype(np.int32)).sum((0, 2))
        for near, far in ((image[:-1], image[1:]), (image[:, :, :-1], image[:, :, 1:]))
    )
    quality = np.minimum(total // 90, 100)
    return torch.from_numpy(np.ascontiguousarray(bits.T)), torch.from_numpy(quality)


def _box(image: "Floats") -> "Floats":
    """One pass of the reference's box filter of 4 down axis 0, by its running sum."""
    import numpy as np

    sums = np.empty_like(image)
    given, running = list(image), list(sums)
    add, subtract, grown = np.add, np.subtract, np.empty_like(given[0])
    add(given[0], given[1], out=grown)
    add(grown, given[2], out=running[0])
    add(running[0], given[3], out=running[1])
    for k in range(2, SIDE - 2):
        add(running[k - 1], given[k + 2], out=grown)
        subtract(grown, given[k - 2], out=running[k])
    subtract(running[-3], given[-4], out=running[-2])
    subtract(running[-2], given[-3], out=running[-1])
    sums[0] /= np.float32(3)
    sums[1:-2] *= np.float32(0.25)
    sums[-2] /= np.float32(3)
    sums[-1] /= np.float32(2)
    return sums
