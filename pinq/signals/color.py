"""``color@1``: the dominant colours of an image and their shares, in OKLab.

OKLab is Björn Ottosson's perceptual colour space (*A perceptual color space for
image processing*, 2020, https://bottosson.github.io/posts/oklab/): L is
lightness, 0 to 1; a runs from green to red, b from blue to yellow, both
within ±0.4; equal distances look about equally large.

1. The image is averaged over 8×8 blocks to 64×64 pixels, as sRGB values.
2. Each pixel becomes OKLab, rounded to 1/2048, finer than the 1/255 of sRGB.
3. Five seeds are chosen greedily among the 8×8 pixels of a grid: each time the one
   that most lowers the sum of squared distances from the 16×16 pixels of a finer grid to
   their nearest seed (k-means++ of Arthur and Vassilvitskii, 2007, with the best
   candidate in place of a random one).
4. Eight rounds of Lloyd's k-means over all 4,096 pixels.

From step 2 everything is whole numbers that float32 holds exactly, so an image's
colours depend neither on its batch-mates nor on the order of a device's sums.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pinq.signals.contract import Computed, ImageInput, Signal, unpack
from pinq.signals.slices import sliced

if TYPE_CHECKING:
    import torch

COLORS = 5
BLOCK = 8
SIDE = 64
GRID = 4  # every 4th pixel of the 64×64, both ways, is weighed for the seeds
ROUNDS = 8

# c·x - |c|²/2 with coordinates of this scale stays below 2**24, where float32 is exact.
STEPS = 2048

# Ottosson's matrices: linear sRGB to cone responses, their cube roots to OKLab, and back.
TO_LMS = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
TO_OKLAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
FROM_OKLAB = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
FROM_LMS = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


class Color(Signal):
    """Up to five dominant colours: rows of share, L, a, b, the largest share first.

    The shares are parts of 1 and sum to 1. An image of fewer than five colours has
    rows of share 0 at the end; their colour means nothing.
    """

    name = "color"
    version = 1
    input = ImageInput(height=SIDE * BLOCK, width=SIDE * BLOCK)
    dtype = "float32"
    shape = (COLORS, 4)

    def load(self, device: "torch.device") -> None:
        import torch

        # Slices, because fresh memory of a whole batch costs more in page faults than the
        # arithmetic on it.
        self._slice = 4 if device.type == "cpu" else 64
        # The linear light of each sum of 64 sRGB values (IEC 61966-2-1).
        srgb = torch.arange(BLOCK * BLOCK * 255 + 1, dtype=torch.float64) / (BLOCK * BLOCK * 255)
        light = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        self._light = light.float().to(device)
        self._to_lms = TO_LMS
        self._to_oklab = tuple(tuple(STEPS * value for value in row) for row in TO_OKLAB)

    def compute(self, images: "torch.Tensor") -> Computed:
        """Find the colours of a batch.

        Args:
            images: uint8 ``[B, 3, 512, 512]``, RGB.

        Returns:
            float32 ``[B, 5, 4]``: share, L, a, b.
        """
        import torch

        return Computed(torch.cat([self._colors(part) for part in sliced(images, self._slice)]))

    def render(self, data: bytes, meta: Mapping[str, Any]) -> dict[str, Any]:
        """``{"colors": [{"share", "L", "a", "b", "hex"}, …]}`` without shares of 0.

        ``hex`` is the colour in sRGB, clipped to what sRGB can show.
        """
        values = unpack(self.dtype, self.shape, data)
        rows = [values[i : i + 4] for i in range(0, len(values), 4)]
        return {
            "colors": [
                {
                    "share": round(share, 4),
                    "L": round(lightness, 4),
                    "a": round(a, 4),
                    "b": round(b, 4),
                    "hex": hex_of(lightness, a, b),
                }
                for share, lightness, a, b in rows
                if share > 0
            ]
        }

    def _colors(self, images: "torch.Tensor") -> "torch.Tensor":
        import torch

        pixels = self._pixels(images)
        with_one = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1).transpose(1, 2)
        centres = _seeds(pixels)
        nearest = torch.empty(len(pixels), COLORS, SIDE * SIDE, device=images.device)
        for _ in range(ROUNDS):
            scores = _scores(centres, pixels)
            torch.ge(scores, scores.amax(1, keepdim=True), out=nearest)
            sums = nearest @ with_one
            counts = sums[..., 3:]
            moved = (sums[..., :3] / counts.clamp(min=1)).round_()
            centres = torch.where(counts > 0, moved, centres)
        # A pixel between two equal centres went to both until here; now to the first alone.
        first = _scores(centres, pixels).max(1, keepdim=True).indices
        choices = torch.arange(COLORS, device=images.device).view(1, COLORS, 1)
        sums = torch.eq(first, choices, out=nearest) @ with_one
        counts = sums[..., 3:]
        means = torch.where(counts > 0, sums[..., :3] / counts.clamp(min=1), centres) / STEPS
        colors = torch.cat([counts / (SIDE * SIDE), means], 2)
        order = counts.squeeze(2).sort(dim=1, descending=True, stable=True).indices
        return colors.gather(1, order.unsqueeze(2).expand(-1, -1, 4))

    def _pixels(self, images: "torch.Tensor") -> "torch.Tensor":
        """OKLab of the 64×64 image in whole 1/2048: float32 ``[n, 3, 4096]``."""
        import torch

        count = len(images)
        rows = images.view(count, 3, SIDE, BLOCK, SIDE * BLOCK).sum(3, dtype=torch.int16)
        blocks = rows.view(count, 3, SIDE * SIDE, BLOCK).sum(3, dtype=torch.int32)
        light = self._light.index_select(0, blocks.flatten()).view(count, 3, -1)
        # One multiplication and one addition at a time: a matrix product may round
        # otherwise for another size of batch.
        cones = _mix(self._to_lms, light).clamp_(min=0).pow_(1 / 3)
        return _mix(self._to_oklab, cones).round_()


def _mix(matrix: tuple[tuple[float, ...], ...], planes: "torch.Tensor") -> "torch.Tensor":
    """``matrix`` times the three planes of ``[n, 3, p]``."""
    import torch

    x, y, z = planes.unbind(1)
    return torch.stack([x * p + y * q + z * r for p, q, r in matrix], 1)


def _scores(centres: "torch.Tensor", pixels: "torch.Tensor") -> "torch.Tensor":
    """``c·x - |c|²/2``, greatest for the nearest centre: ``[n, 5, p]``, exact."""
    import torch

    half_norm = (centres * centres).sum(2, keepdim=True) / 2
    return torch.baddbmm(half_norm, centres, pixels, beta=-1)


def _seeds(pixels: "torch.Tensor") -> "torch.Tensor":
    """Five starting centres: float32 ``[n, 5, 3]``."""
    import torch

    count = len(pixels)
    grid = pixels.view(count, 3, SIDE, SIDE)[:, :, GRID // 2 :: GRID, GRID // 2 :: GRID]
    points = grid.reshape(count, 3, -1)
    candidates = grid[:, :, ::2, ::2].reshape(count, 3, -1)
    # Squared distances in units of 256 (a colour difference of 1/128): whole numbers
    # whose sum over 256 points float32 still holds.
    apart = torch.zeros(count, candidates.shape[2], points.shape[2], device=pixels.device)
    for candidate, point in zip(candidates.unbind(1), points.unbind(1), strict=True):
        apart += (candidate.unsqueeze(2) - point.unsqueeze(1)).square_()
    apart = apart.div_(256).floor_()
    every = torch.arange(count, device=pixels.device)
    nearest = apart.amax(1, keepdim=True)
    chosen = []
    for _ in range(COLORS):
        best = torch.minimum(apart, nearest).sum(2).argmin(1)
        chosen.append(candidates[every, :, best])
        nearest = torch.minimum(nearest, apart[every, best].unsqueeze(1))
    return torch.stack(chosen, 1)


def hex_of(lightness: float, a: float, b: float) -> str:
    """The sRGB colour ``#rrggbb`` nearest to one in OKLab, each channel clipped."""

    def product(matrix: tuple[tuple[float, ...], ...], vector: list[float]) -> list[float]:
        return [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]

    cones = [value**3 for value in product(FROM_OKLAB, [lightness, a, b])]
    digits = ""
    for light in product(FROM_LMS, cones):
        light = min(max(light, 0.0), 1.0)
        srgb = 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055
        digits += f"{round(srgb * 255):02x}"
    return f"#{digits}"
