"""What an encoder is, as data, and the object that embeds windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "bf16", "fp16")
#: torch's names of the half precisions.
HALVES = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder before its weights are loaded.

    Attributes
    ----------
    name
        What users call it, and its name in a store.
    arch
        timm architecture.
    arch_kwargs
        Further arguments of ``timm.create_model``.
    input_px
        Side of the windows that it takes, in pixels.
    mean, std
        Of RGB in [0, 1], subtracted and divided by.
    pooling
        How its output becomes one embedding.
    width
        Length of the embedding; None: known when it is built.
    precision
        What its makers, or measurements here, recommend on devices that are fast at it; None: bf16.
    licence, source
        Terms of the weights, and where they are from.
    """

    name: str
    arch: str
    input_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: str
    width: int | None = None
    precision: str | None = None
    arch_kwargs: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    source: str = ""

    def recipe(self) -> dict[str, Any]:
        """What of the encoder changes an embedding, weights apart."""
        return {
            "name": self.name,
            "arch": self.arch,
            **({"arch_kwargs": dict(self.arch_kwargs)} if self.arch_kwargs else {}),
            "pooling": self.pooling,
            "preprocessing": {"mean": list(self.mean), "std": list(self.std), "scale": "1/255"},
            "input_px": self.input_px,
        }


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
    step: int
    fixed_step: bool
    compiled: bool
    _model: torch.nn.Module
    _mean: torch.Tensor
    _std: torch.Tensor

    def embed(self, windows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed windows (b, input_px, input_px, 3) uint8 as (b, width) float32, and wait for it."""
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
        (k, width) float32 on the device, which may still be computing it.
        """
        import torch

        count = len(pixels)
        if self.fixed_step and count < step:
            white = pixels.new_full((step - count, *pixels.shape[1:]), 255)
            pixels = torch.cat([pixels, white])
        # Rows of pixels (b, px, px, 3) seen as (b, 3, px, px) are channels_last already.
        images = pixels.permute(0, 3, 1, 2).float().div_(255.0).sub_(self._mean).div_(self._std)
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(pixels.device.type, self.precision):
            embedded: torch.Tensor = self._model(images)
        return embedded.float()[:count]


def autocast(device_type: str, precision: str) -> torch.autocast:
    """Products in half precision, where `precision` says so; what needs more is left to float32."""
    import torch

    dtype = getattr(torch, HALVES.get(precision, "bfloat16"))
    return torch.autocast(device_type, dtype=dtype, enabled=precision in HALVES)
