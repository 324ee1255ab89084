"""What several declarations share."""

from __future__ import annotations

from typing import Any

from mmap_st.extract.encoders.spec import Preprocessing

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
INCEPTION: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}

#: Resize(224), CenterCrop(224).
IMAGENET_224 = Preprocessing(**IMAGENET, resize=224, crop=224, interpolation="bilinear")

PACKED_SWIGLU = {"mlp_layer": "timm.layers.SwiGLUPacked", "act_layer": "torch.nn.SiLU"}

NON_COMMERCIAL = "CC-BY-NC-ND-4.0"


#: What building by a repository's own code needs.
WITH_CODE = ("config.json", "*.py")
