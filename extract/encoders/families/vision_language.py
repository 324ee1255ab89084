"""Pathology encoders trained on pictures and text: CONCH, MUSK, PLIP, QuiltNet, KEEP."""

from __future__ import annotations

from mmap_st.extract.encoders.families.common import CLIP, IMAGENET, INCEPTION, NON_COMMERCIAL, WITH_CODE
from mmap_st.extract.encoders.models import PackageModel, RemoteCodeModel, TimmModel, TransformersModel
from mmap_st.extract.encoders.spec import EncoderSpec, Hub, Pooling, Preprocessing

_CONCH_INSTALL = "pip install git+https://github.com/mahmoodlab/CONCH.git"
_MUSK_INSTALL = "pip install git+https://github.com/lilab-stanford/MUSK.git"

CONCH = EncoderSpec(
    name="conch",
    model=PackageModel("conch", "conch", _CONCH_INSTALL, {"proj_contrast": False}),
    input_px=448,
    preprocessing=Preprocessing(**CLIP, resize=448, crop=448),
    pooling=Pooling("own", text="attentional pooler, before the contrastive projection, not normalised"),
    width=512,
    patch_px=16,
    hub=Hub("MahmoodLab/conch", ("pytorch_model.bin",)),
    parameters_m=395.2,
    gflops=157.0,
    mpps=(0.5,),
    precision="fp32",
    licence=NON_COMMERCIAL,
    commercial=False,
    gated=True,
    citation="Lu et al. 2024, Nature Medicine 30",
    note="Before the contrastive projection, as its README advises for embeddings of pictures; after it, as"
    " in LazySlide: conch:contrast. Parameters are of both towers, GFLOPs of the trunk.",
)

MUSK = EncoderSpec(
    name="musk",
    model=PackageModel("musk", "musk", _MUSK_INSTALL, {"ms_aug": False}),
    input_px=384,
    preprocessing=Preprocessing(**INCEPTION, resize=384, crop=384),
    pooling=Pooling("own", text="class token, without projection head, not normalised"),
    width=1024,
    patch_px=16,
    hub=Hub("xiangjx/musk", ("model.safetensors",)),
    parameters_m=675.2,
    gflops=382.1,
    mpps=(0.25, 0.5, 1.0),
    precision="fp16",
    licence=NON_COMMERCIAL,
    commercial=False,
    gated=True,
    citation="Xiang et al. 2025, Nature 638",
    note="One scale, as in TRIDENT and LazySlide; with features of further scales, as in slide2vec, STAMP and"
    " AtlasPatch: musk:multiscale. The parameters count both towers.",
)

PLIP = EncoderSpec(
    name="plip",
    model=TransformersModel(
        "CLIPVisionModelWithProjection", "CLIPVisionConfig", {"patch_size": 32, "projection_dim": 512}
    ),
    input_px=224,
    preprocessing=Preprocessing(**CLIP, resize=224, crop=224),
    pooling=Pooling("own", text="class token, projected"),
    width=512,
    patch_px=32,
    hub=Hub("vinid/plip"),
    drops=("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids"),
    parameters_m=87.85,
    gflops=8.8,
    licence="non-commercial (research only)",
    commercial=False,
    gated=False,
    citation="Huang et al. 2023, Nature Medicine 29",
    source="the authors' repository, by transformers",
    note="Projected, as in STAMP, AtlasPatch and LazySlide; not projected, as in STPath: plip:unprojected.",
)

ENCODERS = (
    CONCH,
    CONCH.variant(
        "contrast",
        model=PackageModel("conch", "conch", _CONCH_INSTALL, {"proj_contrast": True}),
        pooling=Pooling("own", text="attentional pooler, after the contrastive projection, not normalised"),
        note="After the contrastive projection, as in LazySlide.",
    ),
    EncoderSpec(
        name="conch-v1.5",
        model=RemoteCodeModel("conch"),
        input_px=448,
        preprocessing=Preprocessing(**IMAGENET, resize=448, crop=448, interpolation="bilinear"),
        pooling=Pooling("own", text="attentional pooler, then a layer norm"),
        width=768,
        patch_px=16,
        hub=Hub("MahmoodLab/TITAN", beside=WITH_CODE),
        parameters_m=306.1,
        gflops=535.9,
        mpps=(0.5,),
        precision="fp16",
        licence=NON_COMMERCIAL,
        commercial=False,
        gated=True,
        citation="Ding et al. 2025, Nature Medicine (TITAN)",
        source="TITAN's repository, which carries the picture tower",
        note="By TITAN, as its authors show it and slide2vec, STAMP, LazySlide and AtlasPatch load it.",
    ),
    MUSK,
    MUSK.variant(
        "multiscale",
        model=PackageModel("musk", "musk", _MUSK_INSTALL, {"ms_aug": True}),
        width=2048,
        gflops=None,
        note="With features of further scales (ms_aug).",
    ),
    PLIP,
    PLIP.variant(
        "unprojected",
        model=TransformersModel("CLIPVisionModel", "CLIPVisionConfig", {"patch_size": 32}),
        pooling=Pooling("own", text="class token after the last norm"),
        width=768,
        drops=(*PLIP.drops, "visual_projection."),
        parameters_m=87.46,
        note="The pooled class token before the projection, as in STPath.",
    ),
    EncoderSpec(
        name="quilt",
        model=PackageModel("open_clip", "open_clip", "pip install open_clip_torch"),
        input_px=224,
        preprocessing=Preprocessing(**CLIP, resize=224, crop=224),
        pooling=Pooling("own", text="class token, projected, not normalised"),
        width=512,
        patch_px=32,
        hub=Hub(
            "wisdomik/QuiltNet-B-32",
            ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
            beside=("open_clip_config.json",),
        ),
        parameters_m=87.85,
        gflops=8.8,
        licence="MIT",
        commercial=True,
        gated=False,
        citation="Ikezogwo et al. 2023, arXiv 2306.11207",
        source="the authors' repository, by open_clip",
    ),
    EncoderSpec(
        name="keep",
        model=TimmModel(
            "vit_large_patch16_224", {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True}
        ),
        input_px=224,
        preprocessing=Preprocessing(**IMAGENET, resize=224, crop=224),
        pooling=Pooling("own", text="class token, through a head of two layers, of length 1"),
        width=768,
        patch_px=16,
        flexible=True,
        hub=Hub("Astaxanthin/KEEP", ("model.safetensors",)),
        layout="keep",
        parameters_m=304.73,
        gflops=123.1,
        mpps=(0.5,),
        precision="fp16",
        licence="MIT",
        commercial=True,
        gated=False,
        citation="Zhou et al. 2024, arXiv 2412.13126",
        source="the picture tower of the authors' repository",
        note="Built by timm as STAMP does, which needs no code from the hub.",
    ),
)
