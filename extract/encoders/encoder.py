"""The object that embeds windows: a frozen network with its weights on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import torch

#: torch's names of the half precisions.
HALVES = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
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

    @property
    def row_width(self) -> int:
        """Length of a row: an embedding, and behind it the tokens of its grid."""
        return self.width + self.tokens**2 * self.token_width

    def embed(self, windows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed windows (b, input_px, input_px, 3) uint8 as (b, row_width) float32, and wait for it."""
        import torch

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
