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

#: On a CPU the network takes this many windows at a time, always: convolutions round differently with the
#: size of a batch, so one size makes embeddings independent of --batch-size; and small batches are faster
#: there, since activations stay in the caches (benchmarks/README.md).
_CPU_STEP = 4


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
    arch_kwargs: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    source: str = ""

    def recipe(self) -> dict[str, Any]:
        """What of the encoder changes an embedding, weights apart."""
        return {
            "name": self.name,
            "arch": self.arch,
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
    """

    spec: EncoderSpec
    weights_sha256: str
    precision: str
    device: str
    width: int
    _model: torch.nn.Module
    _mean: torch.Tensor
    _std: torch.Tensor

    def embed(self, windows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed windows (b, input_px, input_px, 3) uint8 as (b, width) float32."""
        import torch

        step = _CPU_STEP if self.device == "cpu" else len(windows)
        # A last batch that is not full is filled up with white, for the same reason.
        padding = -len(windows) % step
        if padding:
            filler = np.full((padding, *windows.shape[1:]), 255, np.uint8)
            windows = np.concatenate([windows, filler])
        rows = []
        with torch.inference_mode(), self._autocast():
            for start in range(0, len(windows), step):
                pixels = torch.from_numpy(windows[start : start + step]).to(self.device)
                images = (pixels.permute(0, 3, 1, 2).float().div(255.0) - self._mean) / self._std
                images = images.contiguous(memory_format=torch.channels_last)
                rows.append(self._model(images).float().cpu())
        embeddings: NDArray[np.float32] = torch.cat(rows).numpy()
        return embeddings[: len(windows) - padding]

    def _autocast(self) -> torch.autocast:
        import torch

        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision, torch.bfloat16)
        return torch.autocast(torch.device(self.device).type, dtype=dtype, enabled=self.precision != "fp32")
