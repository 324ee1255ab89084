"""Every declared encoder: it builds, its pooling is the slice that it states, its preprocessing the rule."""

import csv
import dataclasses
import importlib
import itertools
import json
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmap_st.encoders import EncoderSpec
from mmap_st.errors import RequestError
from mmap_st.extract.encoders import encoder_spec, families
from mmap_st.extract.encoders.encoder import note_of_scales, prepare_picture
from mmap_st.extract.encoders.families import ENCODERS
from mmap_st.extract.encoders.networks.builders import build_random
from mmap_st.extract.encoders.networks.pooling import Embedder, grid_side, pool
from mmap_st.extract.encoders.spec import (
    CustomModel,
    PackageModel,
    Pooling,
    Preprocessing,
    RemoteCodeModel,
    TimmModel,
    TransformersModel,
)

OFFLINE = [s for s in ENCODERS.values() if not isinstance(s.model, PackageModel | RemoteCodeModel)]
#: Of the layouts of tokens that there are, a small network each: blocks fewer and narrower, tokens the same.
SMALL: dict[str, dict[str, Any]] = {
    "timm": {"depth": 1, "embed_dim": 48, "num_heads": 2},
    "transformers": {
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 96,
    },
}


def by_name(spec: EncoderSpec) -> str:
    return spec.name


@pytest.mark.parametrize("spec", OFFLINE, ids=by_name)
def test_a_spec_builds_without_memory_and_has_its_width_and_size(spec: EncoderSpec) -> None:
    with torch.device("meta"):
        model = build_random(spec)
        images = torch.zeros(1, 3, spec.input_px, spec.input_px)
        own, features = model.network(images, True)
        embedding = pool(own, features, spec.pooling)
    assert embedding.shape == (1, spec.width)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(spec.parameters_m, abs=0.01)
    assert features is not None
    if features.ndim == 3:
        # Registers are not patches: what is left of the tokens is the window's grid of patches.
        assert grid_side(features, spec.pooling.prefix) == spec.input_px // spec.patch_px


def small(spec: EncoderSpec) -> EncoderSpec:
    """The same encoder with a tiny network of the same kinds of tokens."""
    model = spec.model
    if isinstance(model, TimmModel) and "vit" in model.arch:
        changes = {**model.kwargs, **SMALL["timm"], "img_size": spec.input_px}
        return dataclasses.replace(spec, model=TimmModel(model.arch, changes), width=48)
    if isinstance(model, TransformersModel):
        changes = {**model.settings, **SMALL["transformers"]}
        if "projection_dim" in changes:
            changes["projection_dim"] = 16
        return dataclasses.replace(spec, model=dataclasses.replace(model, settings=changes), width=48)
    return spec


#: Tokens before the patches: the class token and registers. Encoders of a class token alone need no line.
PREFIX = {
    "virchow": 1, "virchow2": 5, "h0-mini": 5, "midnight-12k": 1,
    "dinov3-vits16": 5, "dinov3-vitb16": 5, "dinov3-vitl16": 5,
}  # fmt: skip
#: Encoders whose embedding is the class token beside the mean of the patches.
CLS_AND_MEAN = ("virchow", "virchow2", "h0-mini", "midnight-12k")


def sliced(spec: EncoderSpec, network: Any, images: torch.Tensor) -> torch.Tensor:
    """What the table of encoders says of pooling, written out by hand: P tokens stand before the patches."""
    name, variant = spec.name.partition(":")[::2]
    if isinstance(spec.model, TransformersModel):
        out = network.model(pixel_values=images)
        if name == "plip":
            return out.pooler_output if variant else out.image_embeds
        x = out.last_hidden_state
    elif variant == "layer3":
        return network.model(images)[0].mean((2, 3))
    elif name == "keep":
        x = network.visual.forward_features(images)
        return nn.functional.normalize(network.visual_head(x[:, 0]), dim=-1)
    else:
        x = network.model.forward_features(images)
    if name == "ctranspath":
        return x.flatten(1, 2).mean(1)  # (b, 7, 7, 768)
    if x.ndim == 4:
        return x.mean((2, 3))
    if variant == "avg":
        assert name in PREFIX, f"write the number of tokens before the patches of {name} into PREFIX"
        return x[:, PREFIX[name] :].mean(1)
    if name in CLS_AND_MEAN and variant != "cls":
        return torch.cat([x[:, 0], x[:, PREFIX[name] :].mean(1)], 1)
    return x[:, 0]


@pytest.mark.parametrize("spec", OFFLINE, ids=by_name)
def test_pooling_is_the_slice_by_hand(spec: EncoderSpec) -> None:
    tiny = small(spec)
    model = build_random(tiny)
    with torch.no_grad():  # random tokens must differ, or any slice would do
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
        side = tiny.input_px
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        found, by_hand = model(images), sliced(tiny, model.network, images)
    assert found.shape == by_hand.shape
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-5)


def test_registers_change_what_is_pooled() -> None:
    """The trap of averaging from token 1 where there are registers."""
    x = torch.randn(2, 1 + 4 + 9, 6)
    right = pool(None, x, Pooling("cls+mean_patch", prefix=5))
    wrong = pool(None, x, Pooling("cls+mean_patch", prefix=1))
    torch.testing.assert_close(right[:, 6:], x[:, 5:].mean(1))
    assert not torch.allclose(right, wrong)


# The table of encoders


def test_specs_say_what_the_table_of_encoders_says(shared: Path) -> None:
    with (shared / "facts" / "encoders.csv").open() as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    missing = {"mstar", "pathorchestra", "prost40m", "rudolfv2", "rudolfv2-b", "rudolfv2-s"}
    assert table.keys() - missing <= ENCODERS.keys()
    for name in table.keys() & ENCODERS.keys():  # newer encoders are not in the table
        spec, row = ENCODERS[name], table[name]
        assert spec.input_px == int(row["input_px"]), name
        assert spec.width == int(row["embed_dim"]), name
        assert spec.parameters_m == pytest.approx(float(row["params_millions"])), name
        if row["mean"]:
            assert spec.preprocessing.mean == tuple(map(float, row["mean"].split())), name
            assert spec.preprocessing.std == tuple(map(float, row["std"].split())), name
        if row["patch_px"] and name != "ctranspath":  # its windows are of 32 px
            assert spec.patch_px == int(row["patch_px"]), name
        if row["gated"]:
            assert spec.gated == (row["gated"] == "yes"), name
        if "NC" in row["license"] or "non-commercial" in row["license"].lower():
            assert spec.commercial is False, name
        repository = row["hub_id"].partition(":")[2] or row["hub_id"]
        if repository and name != "conch-v1.5":  # by TITAN's repository
            assert spec.hub is not None
            assert spec.hub.repo == repository, name
        if isinstance(spec.model, TimmModel) and name not in ("ctranspath", "keep"):
            assert spec.model.arch == row["timm_arch"], name
            # What only shapes the classifier, or what the arch does anyway, need not be said.
            silent = {"num_classes", "global_pool", "in_chans"}
            stated = {k: v for k, v in json.loads(row["timm_kwargs"]).items() if k not in silent}
            assert {k: v for k, v in spec.model.kwargs.items() if k not in silent} == pytest.approx(stated), (
                name
            )


def test_variants_are_named_after_an_encoder_and_differ_from_it() -> None:
    for name, spec in ENCODERS.items():
        assert name == spec.name
        parent = name.partition(":")[0]
        if parent != name:
            assert (
                spec.recipe() | {"name": parent} != ENCODERS[parent].recipe()
                or spec.hub != ENCODERS[parent].hub
            )


def test_every_spec_that_a_family_declares_can_be_named() -> None:
    for module in pkgutil.iter_modules(families.__path__):
        family = importlib.import_module(f"{families.__name__}.{module.name}")
        for name, found in vars(family).items():
            declared = found if isinstance(found, tuple) else (found,)
            for spec in (one for one in declared if isinstance(one, EncoderSpec)):
                assert spec.name in ENCODERS, f"add {name} to ENCODERS of {family.__name__}"


def test_every_spec_says_whose_it_is_and_on_what_terms() -> None:
    for spec in ENCODERS.values():
        assert spec.licence, spec.name
        assert spec.citation, spec.name
        assert spec.hub or "--weights" in spec.source, spec.name
        assert spec.gflops or ":" in spec.name, spec.name


def test_gflops_are_those_of_the_formula() -> None:
    """2 x multiply-adds of a ViT (encoders.md), for every one that timm builds."""
    checked = 0
    for spec in OFFLINE:
        if not isinstance(spec.model, TimmModel) or "vit" not in spec.model.arch or spec.gflops is None:
            continue
        with torch.device("meta"):
            model = build_random(spec).network
        vit: Any = model.visual if spec.name == "keep" else model.model
        d, layers = vit.embed_dim, len(vit.blocks)
        patches = (spec.input_px // spec.patch_px) ** 2
        n = patches + spec.pooling.prefix
        mlp = sum(
            p.numel() for name, p in vit.blocks[0].mlp.named_parameters() if "weight" in name and p.ndim == 2
        )
        flops = 2 * (patches * d * 3 * spec.patch_px**2 + layers * (n * (4 * d * d + mlp) + 2 * n * n * d))
        assert spec.gflops == pytest.approx(flops / 1e9, abs=0.06), spec.name
        checked += 1
    assert checked > 25


# Preprocessing, by value


def by_hand(picture: Image.Image, spec: EncoderSpec) -> np.ndarray:
    """The rule with Pillow alone, as torchvision defines it; then the statistics."""
    rule = spec.preprocessing
    image = picture
    if rule.resize is not None:
        kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[
            rule.interpolation
        ]
        width, height = image.size
        if rule.exact:
            size = (rule.resize, rule.resize)
        elif width <= height:
            size = (rule.resize, int(rule.resize * height / width))
        else:
            size = (int(rule.resize * width / height), rule.resize)
        image = image.resize(size, kind)
    if rule.crop is not None:
        left = round((image.width - rule.crop) / 2.0)
        top = round((image.height - rule.crop) / 2.0)
        image = image.crop((left, top, left + rule.crop, top + rule.crop))
    return (np.asarray(image, np.float64) / 255 - rule.mean) / rule.std


@pytest.mark.parametrize("spec", ENCODERS.values(), ids=by_name)
def test_a_picture_of_odd_size_is_prepared_by_the_rule(spec: EncoderSpec) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (39, 45, 3), np.uint8)
    size = (611, 501) if spec.preprocessing.crop or spec.preprocessing.exact else (501, 501)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    seen: list[torch.Tensor] = []

    class Looking(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images.mean((2, 3))

    from mmap_st.extract.encoders import build_encoder

    looking = dataclasses.replace(
        spec, model=CustomModel(Looking), pooling=Pooling("own"), width=3, hub=None, layout=None
    )
    window = prepare_picture(picture, spec)
    build_encoder(looking, device="cpu").embed(window[None])
    expected = by_hand(picture, spec)
    assert window.shape == (spec.input_px, spec.input_px, 3)
    np.testing.assert_allclose(seen[-1][0].permute(1, 2, 0).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_windows_of_the_right_size_are_not_rescaled() -> None:
    """The trap of Resize(256) and CenterCrop(224) on a window of 224 px: a window is what is left of a tile."""
    window = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8)
    from mmap_st.extract.encoders import build_encoder

    spec = dataclasses.replace(
        encoder_spec("prov-gigapath"),
        model=CustomModel(lambda: nn.Sequential(nn.AvgPool2d(224), nn.Flatten())),
        pooling=Pooling("own"),
        width=3,
        hub=None,
    )
    found = build_encoder(spec, device="cpu").embed(window)
    expected = (window.mean((1, 2)) / 255 - spec.preprocessing.mean) / spec.preprocessing.std
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_picture_that_the_rule_leaves_oblong_is_refused() -> None:
    with pytest.raises(RequestError, match="give a square one"):
        prepare_picture(Image.new("RGB", (300, 200)), encoder_spec("virchow2"))


# Sizes and scales


def test_a_wrong_input_size_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(RequestError, match="multiple of 14 px, not 256 px"):
        encoder_spec("dinov2-vits14").with_input(256)
    with pytest.raises(RequestError, match="windows of 224 px and no others"):
        encoder_spec("h-optimus-0").with_input(448)
    larger = encoder_spec("dinov2-vits14").with_input(448)
    assert (larger.input_px, larger.preprocessing.crop, larger.gflops) == (448, 448, None)
    assert larger.recipe() != encoder_spec("dinov2-vits14").recipe()


@pytest.mark.parametrize("spec", [s for s in OFFLINE if s.flexible], ids=by_name)
def test_flexible_encoders_take_windows_of_another_size(spec: EncoderSpec) -> None:
    other = spec.with_input(spec.input_px * 2)
    with torch.device("meta"):
        model = build_random(other)
        assert model(torch.zeros(1, 3, other.input_px, other.input_px)).shape == (1, spec.width)


def test_windows_far_from_the_recommended_scale_get_a_note() -> None:
    assert note_of_scales(encoder_spec("uni"), (0.5, 0.6)) is None
    assert note_of_scales(encoder_spec("efficientnet-lite0"), (0.5, 8.0)) is None
    note = note_of_scales(encoder_spec("uni"), (0.25, 0.5, 2.0))
    assert note == (
        "uni is recommended for 0.5 um/px, and windows are requested at 0.25 (2 times as fine), 2 (4 times as coarse)"
        " too"
    )
    assert note_of_scales(encoder_spec("virchow2"), (0.25, 0.5, 1.0, 2.0)) is None


def test_a_grid_is_the_mean_of_its_patches() -> None:
    tokens = torch.randn(2, 5 + 16, 3)
    embedder = Embedder(nn.Identity(), Pooling("cls", prefix=5))
    embedder.grid = 2
    embedder.network = type(
        "Given", (nn.Module,), {"forward": lambda self, images, features: (None, tokens)}
    )()
    rows = embedder(torch.zeros(2, 3, 8, 8))
    assert rows.shape == (2, 3 + 2 * 2 * 3)
    grid = rows[:, 3:].unflatten(1, (2, 2, 3))
    patches = tokens[:, 5:].unflatten(1, (4, 4))
    for row, column in itertools.product(range(2), range(2)):
        mean = patches[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
        torch.testing.assert_close(grid[:, row, column], mean)


def test_a_rule_reads_as_torchvision_writes_it() -> None:
    rule = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize=224, exact=True, crop=224, stain="Macenko")
    assert str(rule).startswith("Macenko stain normalisation, Resize((224, 224), bicubic), CenterCrop(224)")
