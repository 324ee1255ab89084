"""Pathology encoders of more than 300 million parameters, trained on pictures alone."""

from __future__ import annotations

from dataclasses import replace

from mmap_st.extract.encoders.spec import (
    IMAGENET,
    IMAGENET_224,
    INCEPTION,
    NON_COMMERCIAL,
    PACKED_SWIGLU,
    WITH_CODE,
    EncoderSpec,
    Hub,
    Pooling,
    Preprocessing,
    RemoteCodeModel,
    TimmModel,
    TransformersModel,
)

_BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_BY_TRANSFORMERS = "the authors' repository, by transformers"

UNI = EncoderSpec(
    name="uni",
    model=TimmModel(
        "vit_large_patch16_224",
        {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True},
    ),
    input_px=224,
    preprocessing=IMAGENET_224,
    pooling=Pooling("cls"),
    width=1024,
    patch_px=16,
    flexible=True,
    hub=Hub("MahmoodLab/UNI"),
    parameters_m=303.35,
    gflops=123.1,
    mpps=(0.5,),
    precision="fp16",
    licence=NON_COMMERCIAL,
    commercial=False,
    gated=True,
    citation="Chen et al. 2024, Nature Medicine 30",
    note="Pictures of another size are resized bilinearly, as its README says; LazySlide takes bicubic.",
)

UNI2_H = EncoderSpec(
    name="uni2-h",
    model=TimmModel(
        "vit_giant_patch14_224",
        {
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **PACKED_SWIGLU,
        },
    ),
    input_px=224,
    preprocessing=IMAGENET_224,
    pooling=Pooling("cls", prefix=9),
    width=1536,
    patch_px=14,
    flexible=True,
    hub=Hub("MahmoodLab/UNI2-h"),
    parameters_m=681.39,
    gflops=370.9,
    mpps=(0.5,),
    precision="bf16",
    licence=NON_COMMERCIAL,
    commercial=False,
    gated=True,
    citation="Chen et al. 2024, Nature Medicine 30 (UNI2, 2025)",
    note="Precision: bf16 in TRIDENT, fp16 in slide2vec.",
)


def _virchow(name: str, repository: str, registers: int, parameters_m: float, gflops: float) -> EncoderSpec:
    kwargs = {
        "img_size": 224,
        "init_values": 1e-5,
        "mlp_ratio": 5.3375,
        "global_pool": "",
        "dynamic_img_size": True,
    }
    if registers:
        kwargs["reg_tokens"] = registers
    return EncoderSpec(
        name=name,
        model=TimmModel("vit_huge_patch14_224", {**kwargs, **PACKED_SWIGLU}),
        input_px=224,
        preprocessing=Preprocessing(**IMAGENET, resize=224),
        pooling=Pooling("cls+mean_patch", prefix=1 + registers),
        width=2560,
        patch_px=14,
        flexible=True,
        hub=Hub(repository),
        parameters_m=parameters_m,
        gflops=gflops,
        precision="fp16",
        gated=True,
        note="Class token and mean patch, registers left out, as its authors do; the class token"
        f" alone, as in STAMP{' and eva' if registers else ''}, is {name}:cls.",
    )


def _with_cls(spec: EncoderSpec) -> tuple[EncoderSpec, EncoderSpec]:
    """An encoder that gives class token and mean patch, and its variant without the latter."""
    assert spec.width is not None
    alone = Pooling("cls", prefix=spec.pooling.prefix)
    return spec, spec.variant("cls", pooling=alone, width=spec.width // 2, note="The class token alone.")


VIRCHOW = replace(
    _virchow("virchow", "paige-ai/Virchow", 0, 631.23, 334.8),
    mpps=(0.5,),
    licence="Apache-2.0, with terms on its page",
    citation="Vorontsov et al. 2024, Nature Medicine 30",
)
VIRCHOW2 = replace(
    _virchow("virchow2", "paige-ai/Virchow2", 4, 631.24, 340.1),
    mpps=(0.25, 0.5, 1.0, 2.0),
    licence=NON_COMMERCIAL,
    commercial=False,
    citation="Zimmermann et al. 2024, arXiv 2408.00738",
)

GIGAPATH = EncoderSpec(
    name="prov-gigapath",
    # Patches are of 16 px although the arch's name says 14.
    model=TimmModel(
        "vit_giant_patch14_dinov2",
        {
            "img_size": 224,
            "patch_size": 16,
            "embed_dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
            "dynamic_img_size": True,
        },
    ),
    input_px=224,
    preprocessing=Preprocessing(**IMAGENET, resize=256, crop=224),
    pooling=Pooling("cls"),
    width=1536,
    patch_px=16,
    flexible=True,
    hub=Hub("prov-gigapath/prov-gigapath"),
    parameters_m=1134.95,
    gflops=456.2,
    mpps=(0.5,),
    precision="fp16",
    licence="Prov-GigaPath, research only",
    commercial=False,
    gated=True,
    citation="Xu et al. 2024, Nature 630",
    note="A tile of 256 px keeps its scale and loses its margin; resized to 224 px it changes its scale.",
)


def _optimus(number: int, licence: str, *, commercial: bool, gated: bool) -> EncoderSpec:
    return EncoderSpec(
        name=f"h-optimus-{number}",
        model=TimmModel(
            "vit_giant_patch14_reg4_dinov2",
            {"img_size": 224, "init_values": 1e-5, "global_pool": "token", "dynamic_img_size": False},
        ),
        input_px=224,
        # None upstream: pictures must be 224 x 224 at 0.5 um/px. timm would resize to 256 and crop.
        preprocessing=Preprocessing(*_BIOPTIMUS, resize=224, crop=224, interpolation="bilinear"),
        pooling=Pooling("cls", prefix=5),
        width=1536,
        patch_px=14,
        hub=Hub(f"bioptimus/H-optimus-{number}"),
        parameters_m=1134.77,
        gflops=608.3,
        mpps=(0.5,),
        precision="fp16",
        licence=licence,
        commercial=commercial,
        gated=gated,
        citation=f"Bioptimus {2024 + number}, huggingface.co/bioptimus/H-optimus-{number}",
        note="Upstream resizes nothing: pictures are 224 px at 0.5 um/px. Others are resized bilinearly, as"
        " in TRIDENT and STAMP.",
    )


def _hibou(letter: str, repository: str, width: int, parameters_m: float, gflops: float) -> EncoderSpec:
    return EncoderSpec(
        name=f"hibou-{letter}",
        model=RemoteCodeModel("pooler"),
        input_px=224,
        preprocessing=Preprocessing((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816), resize=224, crop=224),
        pooling=Pooling("own", prefix=5, text="pooler_output: the normalised class token"),
        width=width,
        patch_px=14,
        hub=Hub(repository, beside=WITH_CODE),
        parameters_m=parameters_m,
        gflops=gflops,
        mpps=(0.5,),
        precision="fp16",
        licence="Apache-2.0",
        commercial=True,
        gated=True,
        citation="Nechaev et al. 2024, arXiv 2406.05074",
        source=_BY_TRANSFORMERS,
        note="Patches start after the four registers, as in HEST-Benchmark and slide2vec.",
    )


MIDNIGHT = EncoderSpec(
    name="midnight-12k",
    model=TransformersModel(
        "Dinov2Model",
        "Dinov2Config",
        {
            "hidden_size": 1536,
            "num_hidden_layers": 40,
            "num_attention_heads": 24,
            "image_size": 224,
            "patch_size": 14,
            "use_swiglu_ffn": True,
        },
    ),
    input_px=224,
    preprocessing=Preprocessing(**INCEPTION, resize=224, crop=224, interpolation="bilinear"),
    pooling=Pooling("cls+mean_patch"),
    width=3072,
    patch_px=14,
    hub=Hub("kaiko-ai/midnight", beside=("config.json",)),
    parameters_m=1134.77,
    gflops=598.8,
    mpps=(0.25, 0.5, 1.0, 2.0),
    precision="fp16",
    licence="MIT",
    commercial=True,
    gated=False,
    citation="Karasikov et al. 2025, arXiv 2504.05186",
    source=_BY_TRANSFORMERS,
    note="Class token and mean patch, as in slide2vec, LazySlide and AtlasPatch; the class token alone, as"
    " in TRIDENT and eva, is midnight-12k:cls.",
)

ENCODERS = (
    EncoderSpec(
        name="phikon-v2",
        model=TransformersModel(
            "Dinov2Model",
            "Dinov2Config",
            {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 224,
                "patch_size": 16,
            },
        ),
        input_px=224,
        preprocessing=IMAGENET_224,
        pooling=Pooling("cls"),
        width=1024,
        patch_px=16,
        hub=Hub("owkin/phikon-v2", beside=("config.json",)),
        parameters_m=303.35,
        gflops=123.1,
        mpps=(0.5,),
        precision="fp32",
        licence="Owkin, non-commercial",
        commercial=False,
        gated=False,
        citation="Filiot et al. 2024, arXiv 2409.09173",
        source=_BY_TRANSFORMERS,
    ),
    UNI,
    UNI2_H,
    *_with_cls(VIRCHOW),
    *_with_cls(VIRCHOW2),
    GIGAPATH,
    _optimus(0, "Apache-2.0", commercial=True, gated=False),
    _optimus(1, NON_COMMERCIAL, commercial=False, gated=True),
    _hibou("b", "histai/hibou-b", 768, 85.73, 47.1),
    _hibou("l", "histai/hibou-L", 1024, 303.23, 164.6),
    EncoderSpec(
        name="gpfm",
        model=TimmModel(
            "vit_large_patch14_dinov2", {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True}
        ),
        input_px=224,
        preprocessing=Preprocessing(**IMAGENET, resize=224),
        pooling=Pooling("cls"),
        width=1024,
        patch_px=14,
        flexible=True,
        hub=Hub("majiabo/GPFM", ("GPFM.pth",)),
        layout="gpfm",
        parameters_m=303.23,
        gflops=162.0,
        mpps=(0.5,),
        precision="fp32",
        licence="disputed: MIT, CC-BY-NC-4.0 or CC-BY-NC-ND-4.0",
        commercial=False,
        gated=False,
        citation="Ma et al. 2024, arXiv 2407.18449",
        note="Upstream prefers tiles of 512 px at 40x resized to 224 (about 0.57 um/px). Sources state three"
        " licences; the strictest is assumed here.",
    ),
    *_with_cls(MIDNIGHT),
    EncoderSpec(
        name="open-midnight",
        model=TimmModel("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "global_pool": "token"}),
        input_px=224,
        preprocessing=Preprocessing(**IMAGENET, resize=224, exact=True, interpolation="bilinear"),
        pooling=Pooling("cls", prefix=5),
        width=1536,
        patch_px=14,
        hub=Hub("SophontAI/OpenMidnight", ("teacher_checkpoint_load.pt",)),
        parameters_m=1134.77,
        gflops=608.3,
        mpps=(0.5,),
        precision="fp16",
        licence="Apache-2.0",
        commercial=True,
        gated=True,
        citation="Kaplan et al. 2025, sophont.med/blog/openmidnight",
        note="Upstream builds it by torch.hub (facebookresearch/dinov2); timm converts the tensors' names.",
    ),
    EncoderSpec(
        name="genbio-pathfm",
        model=RemoteCodeModel("direct"),
        input_px=224,
        preprocessing=Preprocessing((0.697, 0.575, 0.728), (0.188, 0.240, 0.187), resize=224, exact=True),
        pooling=Pooling("own", text="class tokens of the three colour channels, one after the other"),
        width=4608,
        patch_px=16,
        hub=Hub("genbio-ai/genbio-pathfm", beside=WITH_CODE),
        parameters_m=1133.7,
        gflops=1395.9,
        mpps=(0.5,),
        precision="fp32",
        licence="GenBio AI Community License",
        gated=False,
        citation="GenBio AI 2025, huggingface.co/genbio-ai/genbio-pathfm",
        source=_BY_TRANSFORMERS,
        note="Red, green and blue are embedded as three pictures. Upstream runs fp32; TRIDENT bf16.",
    ),
)
