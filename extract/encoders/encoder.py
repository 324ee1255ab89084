"""The object that embeds windows: a frozen network on a device, its precision, its preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import torch
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmap_st.errors import RequestError, printable

if TYPE_CHECKING:
    from PIL.Image import Image


#: torch's names of the half precisions.
HALVES = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, repr=False)
class Encoder:
    """A frozen image model with its weights on a device.

    Attributes
    ----------
    spec
        What it is.
    weights_sha256
        Of the weights file, or of the random weights' bytes.
    precision
        One of `PRECISIONS`.
    width
        Length d of an embedding.
    tokens
        Side g of the grid of tokens that it gives too; 0: none.
    token_width
        Length t of a token; 0 where it gives none.
    step
        Windows that the network takes at a time.
    fixed_step
        Whether it always takes that many, a last step filled up with white.
    compiled
        Whether torch compiled the network.
    """

    spec: EncoderSpec
    weights_sha256: str
    precision: str
    device: str
    width: int
    tokens: int
    token_width: int
    step: int
    fixed_step: bool
    compiled: bool
    _model: torch.nn.Module
    _mean: torch.Tensor
    _std: torch.Tensor

    def __repr__(self) -> str:
        px = self.spec.input_px
        more = f" and {self.tokens} x {self.tokens} tokens" if self.tokens else ""
        return (
            f"Encoder {printable(self.spec.name)}: windows (n, {px}, {px}, 3) uint8 to (n, {self.width})"
            f" float32{more}; {self.precision} on {self.device}"
        )

    @property
    def row_width(self) -> int:
        """Length of a row: an embedding, and behind it the tokens of its grid."""
        return self.width + self.tokens**2 * self.token_width

    def embed(self, windows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed windows (b, input_px, input_px, 3) uint8 as (b, row_width) float32, and wait for it.

        Raises
        ------
        RequestError
            If windows have another shape or type.
        """
        import torch

        side = self.spec.input_px
        if windows.dtype != np.uint8 or windows.shape[1:] != (side, side, 3):
            raise RequestError(
                f"{self.spec.name} takes windows (n, {side}, {side}, 3) of uint8, and these are"
                f" {windows.shape} of {windows.dtype}."
            )
        if not len(windows):
            return np.empty((0, self.row_width), np.float32)

        with torch.inference_mode():
            pixels = torch.from_numpy(windows).to(self.device)
            parts = [
                self.forward(pixels[start : start + self.step], self.step).cpu()
                for start in range(0, len(windows), self.step)
            ]
        embeddings: NDArray[np.float32] = torch.cat(parts).numpy()
        return embeddings

    def forward(self, pixels: torch.Tensor, step: int) -> torch.Tensor:
        """Embed what is on the device already: windows (k, input_px, input_px, 3) uint8, k at most `step`.

        Returns
        -------
        (k, row_width) float32 on the device, which may still be computing it.
        """
        import torch

        count = len(pixels)
        if self.fixed_step and count < step:
            white = pixels.new_full((step - count, *pixels.shape[1:]), 255)
            pixels = torch.cat([pixels, white])
        # Rows of pixels (b, px, px, 3) seen as (b, 3, px, px) are channels_last already.
        images = self._scaled(pixels).sub_(self._mean).div_(self._std)
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(pixels.device.type, self.precision):
            embedded: torch.Tensor = self._model(images)
        return embedded.float()[:count]

    def _scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Windows (b, px, px, 3) uint8 as images (b, 3, px, px) in [0, 1]."""
        prepare = getattr(getattr(self._model, "network", None), "prepare", None)
        if prepare is not None:
            prepared: torch.Tensor = prepare(pixels)
            return prepared
        return pixels.permute(0, 3, 1, 2).float().div_(255.0)


def autocast(device_type: str, precision: str) -> torch.autocast:
    """Products in half precision, where `precision` says so; what needs more is left to float32."""
    import torch

    dtype = getattr(torch, HALVES.get(precision, "bfloat16"))
    return torch.autocast(device_type, dtype=dtype, enabled=precision in HALVES)


_CPU_FLAGS = Path("/proc/cpuinfo")
#: The first NVIDIA cards whose matrix units know bfloat16 (Ampere).
_FIRST_WITH_BF16 = (8, 0)


def auto_precision(spec: EncoderSpec, device: str, stored: str | None) -> str:
    """The precision to take where the user names none.

    Parameters
    ----------
    spec
        The encoder; what it recommends is taken where the device is fast at half precision.
    device
        As torch names it.
    stored
        Of what the store has of this encoder, which always comes first: one store, one recipe.
    """
    if stored is not None:
        return stored
    if not is_fast_at_bf16(device):
        return "fp32"
    recommended = spec.precision or "bf16"
    # Matrix units of CPUs know bf16; fp16 would be slow there.
    return "bf16" if device == "cpu" and recommended == "fp16" else recommended


def is_fast_at_bf16(device: str) -> bool:
    """Whether a device has matrix units for bfloat16: an NVIDIA card since Ampere, a CPU with AMX."""
    kind = device.split(":")[0]
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_capability(device) >= _FIRST_WITH_BF16
    if kind == "cpu":
        try:
            return "amx_bf16" in _CPU_FLAGS.read_text().split()
        except OSError:
            return False
    return False


#: Windows this many times as fine or coarse as recommended are said to be far from it.
_FAR = 1.5


def note_of_scales(spec: EncoderSpec, mpps: Sequence[float]) -> str | None:
    """Say which windows are far from the scales that an encoder is recommended for; None where none is."""
    if not spec.mpps:
        return None
    far = []
    for mpp in mpps:
        ratio = min((mpp / known for known in spec.mpps), key=lambda ratio: max(ratio, 1 / ratio))
        if max(ratio, 1 / ratio) > _FAR:
            far.append(f"{mpp:g} ({max(ratio, 1 / ratio):.3g} times as {'coarse' if ratio > 1 else 'fine'})")
    if not far:
        return None
    known = " or ".join(f"{mpp:g}" for mpp in spec.mpps)
    return f"{spec.name} is recommended for {known} um/px, and windows are requested at {', '.join(far)} too"


def prepare_picture(picture: Image, spec: EncoderSpec) -> NDArray[np.uint8]:
    """Resize and crop a picture by the encoder's rule; the encoder itself normalises what comes out.

    Windows of slides need none of this: they are cut at the size and scale that the rule leads to.

    Parameters
    ----------
    picture
        RGB, of any size.

    Returns
    -------
    (input_px, input_px, 3) uint8, as `Encoder.embed` takes it.

    Raises
    ------
    RequestError
        If the rule leads to another size: it crops nothing and the picture is not square, or resizes nothing.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    rule = spec.preprocessing
    image = picture.convert("RGB")
    if rule.resize is not None:
        size = [rule.resize, rule.resize] if rule.exact else [rule.resize]
        image = resize(image, size, InterpolationMode(rule.interpolation))
    if rule.crop is not None:
        image = center_crop(image, [rule.crop, rule.crop])
    if image.size != (spec.input_px, spec.input_px):
        raise RequestError(
            f"A picture of {picture.width} x {picture.height} px becomes {image.width} x {image.height} px by"
            f" {spec.name}'s rule ({rule}), not {spec.input_px} px square; give a square one."
        )
    return np.array(image)
