"""Pathology encoders of vision transformers up to ViT-B, CTransPath and Lunit's; and Kaiko's ViT-L."""

from __future__ import annotations

from mmap_st.extract.encoders.spec import (
    IMAGENET,
    IMAGENET_224,
    INCEPTION,
    NON_COMMERCIAL,
    PACKED_SWIGLU,
    EncoderSpec,
    Hub,
    PackageModel,
    Pooling,
    Preprocessing,
    TimmModel,
    TransformersModel,
)

CTRANSPATH = EncoderSpec(
    name="ctranspath",
    model=TimmModel(
        "swin_tiny_patch4_window7_224",
        {"embed_layer": "mmap_st.extract.encoders.networks.builders:ConvolutionStem"},
    ),
    input_px=224,
    preprocessing=IMAGENET_224,
    pooling=Pooling("map", text="mean over the last 7 x 7 tokens after the last norm"),
    width=768,
    patch_px=32,
    parameters_m=27.52,
    gflops=9.0,
    mpps=(1.0,),
    precision="fp32",
    licence="GPL-3.0",
    commercial=True,
    gated=False,
    citation="Wang et al. 2022, Medical Image Analysis 81",
    source="ctranspath.pth of github.com/Xiyue-Wang/TransPath (Google Drive): give it with --weights",
    note="The original weights, as in HEST-Benchmark, STAMP and LazySlide. TRIDENT loads those of CHIEF under"
    " the same name: that is ctranspath:chief.",
)
CHIEF = CTRANSPATH.variant(
    "chief",
    hub=Hub("MahmoodLab/hest-bench", ("fm_v1/ctranspath/CHIEF_CTransPath.pth",), kind="dataset"),
    licence="AGPL-3.0",
    citation="Wang et al. 2024, Nature 634",
    source="the dataset repository MahmoodLab/hest-bench",
    note="The same network with the weights of CHIEF, as in TRIDENT.",
)

_LUNIT_CITATION = "Kang et al. 2023, CVPR, arXiv 2212.04690"
_LUNIT_MEAN = (0.70322989, 0.53606487, 0.66096631)
_LUNIT_STD = (0.21716536, 0.26081574, 0.20723464)


def _lunit_vits(patch_px: int, gflops: float) -> tuple[EncoderSpec, ...]:
    name = f"lunit-vits{patch_px}"
    spec = EncoderSpec(
        name=name,
        model=TimmModel(f"vit_small_patch{patch_px}_224", {"dynamic_img_size": True}),
        input_px=224,
        preprocessing=Preprocessing(_LUNIT_MEAN, _LUNIT_STD, resize=224, crop=224),
        pooling=Pooling("cls"),
        width=384,
        patch_px=patch_px,
        flexible=True,
        hub=Hub(f"1aurent/vit_small_patch{patch_px}_224.lunit_dino"),
        parameters_m=21.67,
        gflops=gflops,
        mpps=(0.5,),
        precision="fp32",
        licence="Lunit, non-commercial (research only)",
        commercial=False,
        gated=False,
        citation=_LUNIT_CITATION,
        source=f"also dino_vit_small_patch{patch_px}_ep200.torch of lunit-io/benchmark-ssl-pathology",
        note=f"The statistics of its training pictures, as in eva. LazySlide takes ImageNet's:"
        f" that is {name}:imagenet.",
    )
    other = Preprocessing(**IMAGENET, resize=224, crop=224)
    return spec, spec.variant(
        "imagenet", preprocessing=other, note="ImageNet's mean and std, as in LazySlide."
    )


LUNIT_RN50 = EncoderSpec(
    name="lunit-rn50",
    model=TimmModel("resnet50"),
    input_px=224,
    preprocessing=Preprocessing(_LUNIT_MEAN, _LUNIT_STD, resize=224, crop=224),
    pooling=Pooling("map", text="global average of the last feature map"),
    width=2048,
    patch_px=32,
    flexible=True,
    hub=Hub("1aurent/resnet50.lunit_bt"),
    drops=("fc.",),
    parameters_m=23.51,
    gflops=8.2,
    licence="Lunit, non-commercial (research only)",
    commercial=False,
    gated=False,
    citation=_LUNIT_CITATION,
    source="Barlow Twins; also bt_rn50_ep200.torch of lunit-io/benchmark-ssl-pathology",
    note="No source states its mean and std; those of the same study's ViTs, trained on the same pictures,"
    " are taken. LazySlide takes ImageNet's: that is lunit-rn50:imagenet.",
)
LUNIT = (
    *_lunit_vits(8, 44.8),
    *_lunit_vits(16, 9.2),
    LUNIT_RN50,
    LUNIT_RN50.variant(
        "imagenet",
        preprocessing=Preprocessing(**IMAGENET, resize=224, crop=224),
        note="ImageNet's mean and std, as in LazySlide.",
    ),
)

PHIKON = EncoderSpec(
    name="phikon",
    model=TransformersModel("ViTModel", "ViTConfig", {"image_size": 224, "patch_size": 16}),
    input_px=224,
    preprocessing=Preprocessing(**IMAGENET, resize=224, exact=True, interpolation="bilinear"),
    pooling=Pooling("cls"),
    width=768,
    patch_px=16,
    hub=Hub("owkin/phikon", beside=("config.json",)),
    drops=("pooler.",),
    parameters_m=85.8,
    gflops=35.1,
    mpps=(0.5,),
    precision="fp32",
    licence="Owkin, non-commercial",
    commercial=False,
    gated=False,
    citation="Filiot et al. 2023, medRxiv 2023.07.21.23292757",
    source="the authors' repository, by transformers",
    note="The same weights under timm's names, which need no transformers: phikon:timm.",
)
PHIKON_TIMM = PHIKON.variant(
    "timm",
    model=TimmModel("vit_base_patch16_224"),
    hub=Hub("1aurent/vit_base_patch16_224.owkin_pancancer"),
    preprocessing=Preprocessing(**IMAGENET, resize=224, crop=224),
    drops=(),
    source="a port by 1aurent",
    note="timm's norms take 1e-6 where the authors' network takes 1e-12.",
)


def _kaiko(
    arch: str, letter: str, patch_px: int, width: int, parameters_m: float, gflops: float
) -> EncoderSpec:
    large = letter == "l"
    repository = "vit_large_patch14_reg4_224" if large else arch
    return EncoderSpec(
        name=f"kaiko-vit{letter}{patch_px}",
        model=TimmModel(arch, {"img_size": 518 if large else 224, "dynamic_img_size": True}),
        input_px=224,
        preprocessing=Preprocessing(**INCEPTION, resize=224, crop=224, interpolation="bilinear"),
        pooling=Pooling("cls", prefix=5 if large else 1),
        width=width,
        patch_px=patch_px,
        flexible=True,
        hub=Hub(f"1aurent/{repository}.kaiko_ai_towards_large_pathology_fms"),
        parameters_m=parameters_m,
        gflops=gflops,
        mpps=(0.5,),
        precision="fp32",
        licence="kaiko, non-commercial",
        commercial=False,
        gated=False,
        citation="kaiko.ai 2024, arXiv 2404.15217",
        source=f"also vit{letter}{patch_px}.pth of kaiko-ai/towards_large_pathology_fms, release 0.0.1",
    )


KAIKO = (
    _kaiko("vit_small_patch16_224", "s", 16, 384, 21.67, 9.2),
    _kaiko("vit_small_patch8_224", "s", 8, 384, 21.67, 44.8),
    _kaiko("vit_base_patch16_224", "b", 16, 768, 85.8, 35.1),
    _kaiko("vit_base_patch8_224", "b", 8, 768, 85.81, 156.3),
    _kaiko("vit_large_patch14_reg4_dinov2", "l", 14, 1024, 304.37, 164.6),
)

H0_MINI = EncoderSpec(
    name="h0-mini",
    model=TimmModel(
        "vit_base_patch14_reg4_dinov2",
        {"img_size": 224, "mlp_ratio": 5.33334, **PACKED_SWIGLU},
    ),
    input_px=224,
    preprocessing=Preprocessing(
        (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517), resize=224, crop=224
    ),
    pooling=Pooling("cls+mean_patch", prefix=5),
    width=1536,
    patch_px=14,
    hub=Hub("bioptimus/H0-mini"),
    parameters_m=85.74,
    gflops=47.1,
    mpps=(0.5,),
    precision="fp16",
    licence=NON_COMMERCIAL,
    commercial=False,
    gated=True,
    citation="Filiot et al. 2025, arXiv 2501.16239",
    note="Class token and mean patch, as in slide2vec, LazySlide and AtlasPatch; the class token alone, as in"
    " TRIDENT, HEST-Benchmark and eva, is h0-mini:cls. The network's shape is inferred from size and tokens.",
)

ENCODERS = (
    CTRANSPATH,
    CHIEF,
    *LUNIT,
    PHIKON,
    PHIKON_TIMM,
    *KAIKO,
    H0_MINI,
    H0_MINI.variant("cls", pooling=Pooling("cls", prefix=5), width=768, note="The class token alone."),
    EncoderSpec(
        name="exaone-path",
        model=PackageModel(
            "torchstain",
            "exaone_path",
            "pip install torchstain, and git clone https://github.com/LG-AI-EXAONE/EXAONEPath",
        ),
        input_px=224,
        preprocessing=Preprocessing(**IMAGENET, resize=256, crop=224, stain="Macenko"),
        pooling=Pooling("cls"),
        width=768,
        patch_px=16,
        hub=Hub("LGAI-EXAONE/EXAONEPath"),
        parameters_m=85.8,
        gflops=35.1,
        licence="EXAONEPath AI Model License 1.0 - NC",
        commercial=False,
        citation="Yun et al. 2024, arXiv 2408.00380",
        source="also EXAONEPath.ckpt of the repository's release 1.0.0",
        note="Every window is stain-normalised first, to the target picture of the authors' repository.",
    ),
)
