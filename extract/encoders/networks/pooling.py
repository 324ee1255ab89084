"""The network of an encoder and its pooling: images in, one row of numbers a window out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmap_st.extract.encoders.spec import Pooling

#: What a network gives: its own embedding (b, d) where it has one, and its tokens (b, n, t) or last feature
#: map (b, t, h, w) where requested.
Output = tuple[Tensor | None, Tensor | None]


class TimmNetwork(nn.Module):
    """A model of timm.

    Parameters
    ----------
    model
        Built without a classifier, or to give the map of one stage (``features_only``).
    own
        Whether its own pooling makes the embedding.
    """

    def __init__(self, model: nn.Module, own: bool) -> None:
        super().__init__()
        self.model = model
        self._stages = not hasattr(model, "forward_head")
        self._own = own

    def forward(self, images: Tensor, features: bool) -> Output:
        """Embed images (b, 3, px, px)."""
        model: Any = self.model
        if self._stages:
            return None, model(images)[-1]
        if self._own and not features:
            return model(images), None
        found = model.forward_features(images)
        own = model.forward_head(found) if self._own else None
        if found.ndim == 4 and str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC"):
            found = found.permute(0, 3, 1, 2)
        return own, found


class KeepNetwork(nn.Module):
    """The picture tower of KEEP: a ViT, two layers, length 1 (Zhou et al. 2024, arXiv 2412.13126)."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.visual = trunk
        self.visual_head = nn.Sequential(
            nn.Linear(int(trunk.num_features), width),  # type: ignore[arg-type]
            nn.GELU(),
            nn.Linear(width, width),
        )

    def forward(self, images: Tensor, features: bool) -> Output:
        """Embed images (b, 3, px, px)."""
        trunk: Any = self.visual
        tokens = trunk.forward_features(images)
        return F.normalize(self.visual_head(tokens[:, 0]), dim=-1), tokens


class TransformersNetwork(nn.Module):
    """A vision model of transformers; its own embedding is its projection, else its pooled token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, features: bool) -> Output:
        """Embed images (b, 3, px, px)."""
        out = self.model(pixel_values=images)
        own = getattr(out, "image_embeds", None)
        return (getattr(out, "pooler_output", None) if own is None else own), out.last_hidden_state


class ModuleNetwork(nn.Module):
    """A module that gives an embedding (b, d), or tokens (b, n, t) or a map (b, t, h, w) to pool."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, features: bool) -> Output:
        """Embed images (b, 3, px, px)."""
        out = self.model(images)
        return (out, None) if out.ndim == 2 else (None, out)


class Embedder(nn.Module):
    """A network and its pooling.

    Parameters
    ----------
    network
        Maps images and a flag, whether tokens or map are wanted, to `Output`.
    pooling
        How that becomes one embedding.

    Attributes
    ----------
    grid
        Side of the grid of patch tokens that is given too; 0: none.
    """

    def __init__(self, network: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.network = network
        self.pooling = pooling
        self.grid = 0

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (b, 3, px, px), normalised.

        Returns
        -------
        (b, d): the embedding; with a grid, (b, d + g * g * t): the embedding, then the grid's tokens by row.
        """
        pooled_here = self.pooling.kind not in ("own", "map")
        own, features = self.network(images, pooled_here or self.grid > 0)
        embedding = pool(own, features, self.pooling)
        if not self.grid:
            return embedding
        tokens = token_grid(features, self.pooling.prefix, self.grid)
        return torch.cat([embedding, tokens.flatten(1).to(embedding.dtype)], dim=1)


def pool(own: Tensor | None, features: Tensor | None, pooling: Pooling) -> Tensor:
    """One embedding (b, d) of what a network gives, by the exact slices of `Pooling`."""
    if pooling.kind in ("own", "map") and own is not None:
        return own
    if features is None:
        raise ValueError(
            f"it gives one vector a window, which pooling {pooling.kind!r} cannot pool; use 'own'"
        )
    if pooling.kind == "own":
        raise ValueError(f"it gives {tuple(features.shape)}, which pooling 'own' does not pool; use another")
    if pooling.kind == "map":
        return features.mean((2, 3))
    patches = features[:, pooling.prefix :]
    if pooling.kind == "cls":
        return features[:, 0]
    if pooling.kind == "mean_patch":
        return patches.mean(1)
    return torch.cat([features[:, 0], patches.mean(1)], dim=-1)


def token_grid(features: Tensor, prefix: int, side: int) -> Tensor:
    """Average-pool patch tokens (b, n, t), those before `prefix` left out, or a map (b, t, h, w) to a grid.

    Returns
    -------
    (b, side, side, t); rows from the top of the window to its bottom.
    """
    if features.ndim == 3:
        rows = grid_side(features, prefix)
        features = features[:, prefix:].transpose(1, 2).unflatten(2, (rows, rows))
    return F.adaptive_avg_pool2d(features.float(), side).permute(0, 2, 3, 1)


def grid_side(features: Tensor, prefix: int) -> int:
    """Side of the square of patch tokens (b, n, t) or of a map (b, t, h, w); 0 where it is not a square."""
    if features.ndim == 4:
        return features.shape[2] if features.shape[2] == features.shape[3] else 0
    side = round((features.shape[1] - prefix) ** 0.5)
    return side if side * side == features.shape[1] - prefix else 0
