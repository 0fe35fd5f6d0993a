"""``quality@1``: how sharp, how bright and how contrasty an image is.

All three are of luma (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B) at 512×512:

* *sharpness*: the variance of the Laplacian, kernel ``0 1 0 / 1 -4 1 / 0 1 0`` on the
  inner 510×510 pixels, luma 0 to 255 (Pech-Pacheco et al., *Diatom autofocusing in
  brightfield microscopy: a comparative study*, ICPR 2000). 0 is a blank
  image; a photograph in focus has some hundreds. It is of the resized image, so that
  it compares photographs of different sizes.
* *exposure*: the mean luma as a part of white: 0 is black, 1 is white.
* *contrast*: the standard deviation of luma as a part of white, known as RMS contrast
  (Peli, *Contrast in complex images*, JOSA A 7, 1990): 0 is one shade, 0.5, the most
  there can be, is half black and half white.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pinq.signals.contract import Computed, ImageInput, Signal, unpack
from pinq.signals.slices import sliced

if TYPE_CHECKING:
    import torch

SIDE = 512
LUMA = (299, 587, 114)  # thousandths, so that luma is whole numbers
WHITE = 1000 * 255


class Quality(Signal):
    """Sharpness, exposure and contrast, in that order."""

    name = "quality"
    version = 1
    input = ImageInput(height=SIDE, width=SIDE)
    dtype = "float32"
    shape = (3,)

    def load(self, device: "torch.device") -> None:
        # One image at a time on a CPU: a larger slice leaves the cache.
        self._slice = 1 if device.type == "cpu" else 32

    def compute(self, images: "torch.Tensor") -> Computed:
        """Measure a batch.

        Args:
            images: uint8 ``[B, 3, 512, 512]``, RGB.

        Returns:
            float32 ``[B, 3]``: sharpness, exposure, contrast.
        """
        import torch

        return Computed(torch.cat([_measure(part) for part in sliced(images, self._slice)]))

    def render(self, data: bytes, meta: Mapping[str, Any]) -> dict[str, Any]:
        """``{"sharpness", "exposure", "contrast"}``, rounded."""
        sharpness, exposure, contrast = unpack(self.dtype, self.shape, data)
        return {
            "sharpness": round(sharpness, 2),
            "exposure": round(exposure, 4),
            "contrast": round(contrast, 4),
        }


def _measure(images: "torch.Tensor") -> "torch.Tensor":
    import torch

    red, green, blue = images.unbind(1)
    luma = red.float().mul_(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    mean = _mean(luma)
    # Around a whole number near the mean, squares lose least and the Laplacian nothing.
    middle = mean.round()
    luma -= middle.view(-1, 1, 1)
    variance = _mean(luma.square()) - (mean - middle).square()

    # The image as one long line: a pixel's neighbours are 1 and 512 away. Only the first
    # and last pixel of a row get wrong ones, and are left out.
    line = luma.flatten(1)
    laplacian = line[:, : -2 * SIDE] + line[:, 2 * SIDE :]
    laplacian += line[:, SIDE - 1 : -SIDE - 1]
    laplacian += line[:, SIDE + 1 : -SIDE + 1]
    laplacian.add_(line[:, SIDE:-SIDE], alpha=-4)
    laplacian = laplacian.view(-1, SIDE - 2, SIDE)[:, :, 1:-1]
    slope = _mean(laplacian)
    sharpness = (_mean(laplacian.square()) - slope.square()) / 1000**2

    contrast = variance.clamp(min=0).sqrt() / WHITE
    return torch.stack([sharpness.clamp(min=0), mean / WHITE, contrast], 1).float()


def _mean(planes: "torch.Tensor") -> "torch.Tensor":
    """The mean of each plane of ``[n, h, w]``: rows in float32, their sum in float64."""
    import torch

    rows = planes.sum(2)
    if planes.device.type == "mps":  # has no float64
        return rows.sum(1) / planes[0].numel()
    return rows.sum(1, dtype=torch.float64) / planes[0].numel()
