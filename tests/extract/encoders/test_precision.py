"""Half precision and compiled networks give the embeddings of fp32, and are taken where that is fast."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmap_st.encoders import EncoderSpec
from mmap_st.errors import RequestError
from mmap_st.extract.encoders import build_encoder, encoder_spec
from mmap_st.extract.encoders import encoder as precisions
from mmap_st.extract.encoders.encoder import auto_precision
from mmap_st.extract.encoders.spec import TimmModel
from mmap_st.extract.slides.slide import open_slide
from mmap_st.extract.windows.reader import read_window

LITE0 = encoder_spec("efficientnet-lite0")
VITS = encoder_spec("dinov2-vits14")


@pytest.fixture(scope="module")
def windows(shared: Path) -> np.ndarray:
    slide = open_slide(shared / "data" / "wsi" / "CMU-1-Small-Region.svs")
    xy = np.random.default_rng(0).uniform((200, 200), (2000, 2700), (6, 2))
    boxes = np.concatenate([xy - 112, xy + 112], axis=1)
    return np.stack([read_window(slide, box.tolist(), 224) for box in boxes])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_every_window_of_a_vit(shared: Path, windows, precision: str) -> None:
    weights = shared / "weights" / "dinov2_vits14_fp16.safetensors"
    plain, half = (
        build_encoder(VITS, weights=weights, device="cpu", precision=name).embed(windows)
        for name in ("fp32", precision)
    )
    assert cosines(half, plain).min() > 0.999
    assert not np.array_equal(half, plain)  # it is another arithmetic


def test_lite0_recommends_fp32_since_half_precision_moves_its_windows_further(windows) -> None:
    plain, half = (
        build_encoder(LITE0, device="cpu", precision=name).embed(windows) for name in ("fp32", "bf16")
    )
    assert cosines(half, plain).min() < 0.999
    assert LITE0.precision == "fp32"


def test_a_compiled_network_gives_the_same_embeddings(windows) -> None:
    spec = encoder_spec("timm:test_vit")
    # Of one block: a compiler takes as long for each.
    spec = replace(spec, model=TimmModel("test_vit", {**spec.model.kwargs, "depth": 1}))
    plain, compiled = (
        build_encoder(spec, random_weights=True, device="cpu", compiled=wanted) for wanted in (False, True)
    )
    small = np.ascontiguousarray(windows[:, : spec.input_px, : spec.input_px])
    assert compiled.compiled
    assert cosines(compiled.embed(small), plain.embed(small)).min() > 0.9999


def test_a_network_that_cannot_be_compiled_is_refused_in_one_sentence(monkeypatch) -> None:
    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr("torch.compile", no_compiler)
    with pytest.raises(RequestError, match=r"cannot compile .* \(no C\+\+ compiler\); leave out --compile"):
        build_encoder(encoder_spec("timm:test_vit"), random_weights=True, device="cpu", compiled=True)


@pytest.mark.parametrize(
    ("flags", "spec", "stored", "expected"),
    [
        ("fpu amx_bf16 avx2", VITS, None, "bf16"),
        ("fpu avx2 avx512_bf16", VITS, None, "fp32"),
        ("fpu amx_bf16", LITE0, None, "fp32"),
        ("fpu amx_bf16", VITS, "fp32", "fp32"),
        ("fpu", VITS, "bf16", "bf16"),
        ("fpu amx_bf16", encoder_spec("uni"), None, "bf16"),  # fp16 is for GPUs
    ],
)
def test_auto_is_what_the_store_has_then_what_is_fast_and_recommended(
    tmp_path: Path, monkeypatch, flags: str, spec: EncoderSpec, stored: str | None, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(precisions, "_CPU_FLAGS", tmp_path / "cpuinfo")
    assert auto_precision(spec, "cpu", stored) == expected
