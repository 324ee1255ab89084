"""The stem of CTransPath: three convolutions in place of Swin's patch embedding.

Wang et al. 2022, Medical Image Analysis 81: 3 x 3 with stride 2, twice, each with batch norm and ReLU, to
widths of an eighth and a quarter of the embedding's, then 1 x 1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ConvolutionStem(nn.Module):
    """What timm's Swin takes as its `embed_layer`."""

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        norm_layer: Any,
        **_: Any,
    ) -> None:
        super().__init__()
        assert patch_size == 4, "two strides of two"
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (height // patch_size, width // patch_size)
        widths = (embed_dim // 8, embed_dim // 4)
        layers: list[nn.Module] = []
        for before, after in ((in_chans, widths[0]), widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(widths[1], embed_dim, 1)]
        self.proj = nn.Sequential(*layers)
        self.norm = norm_layer(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (b, 3, px, px) as (b, px / 4, px / 4, d)."""
        patches: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return patches
