"""Encoders in use: reference embeddings, grids in a store, the list, the doctor."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest

from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort
from mmap_st.errors import RecipeMismatchError
from mmap_st.extract.encoders import build_encoder, encoder_spec
from mmap_st.extract.encoders.families import ENCODERS
from mmap_st.extract.encoders.self_test import examine_encoder
from mmap_st.extract.engine import machine
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.engine.machine import examine_machine
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.store.contents import list_contents
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.progress import Silent

REFERENCE = Path(__file__).parent / "reference" / "embeddings.json"
TINY = encoder_spec("timm:test_vit")


# What others compute


@pytest.mark.parametrize("name", ["efficientnet-lite0", "dinov2-vits14"])
def test_an_embedding_of_real_tissue_is_that_of_its_makers(shared: Path, name: str) -> None:
    """The window and who computed its embedding are in the file of references."""
    reference = json.loads(REFERENCE.read_text())
    window = reference["window"]
    with openslide.OpenSlide(shared / window["slide"]) as slide:
        region = slide.read_region(window["level0_xy"], 0, (window["px"], window["px"])).convert("RGB")
    weights = shared / "weights" / "dinov2_vits14_fp16.safetensors" if name == "dinov2-vits14" else None
    encoder = build_encoder(encoder_spec(name), weights=weights, device="cpu")
    ours = encoder.embed(np.array(region)[None])[0]
    theirs = np.array(reference[name]["embedding"], np.float32)
    assert ours.shape == theirs.shape
    if name == "efficientnet-lite0":
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 1e-3
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.999


# Grids of tokens


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def section(write_section) -> Cohort:
    return open_cohort(f"her2st:{write_section('A1', side=5)}")


def request(tokens: int | None = None, name: str = "timm:test_vit") -> EncoderRequest:
    return EncoderRequest(
        encoder_spec(name), random_weights=True, device="cpu", precision="fp32", tokens=tokens
    )


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_efficientnet"])
def test_a_grid_of_tokens_is_kept_beside_embeddings_that_stay_the_same(
    section: Cohort, tmp_path: Path, name: str
) -> None:
    options = ExtractOptions(batch_size=7, chunk=10)
    extract_cohort(section, tmp_path / "plain.zarr", request(None, name), (0.5,), options)
    report = extract_cohort(section, tmp_path / "tokens.zarr", request(2, name), (0.5,), options)
    assert report.done == ["A1"]
    plain, kept = (
        FeatureStore.open(tmp_path / f"{which}.zarr").slide("A1").complete(name)[0.5]
        for which in ("plain", "tokens")
    )
    assert np.array_equal(plain.embedding(), kept.embedding())
    assert (plain.tokens, kept.tokens) == (0, 2)
    grid = kept.token_rows(slice(None))
    assert grid.shape[:3] == (25, 2, 2)
    if name == "timm:test_efficientnet":
        # The embedding is the mean of the same map, 5 x 5 of which a grid of 2 x 2 shares the middle.
        assert grid.shape[3] == plain.width
    assert kept.group["tokens"].dtype == np.float16
    assert kept.group["tokens"].chunks == (10, 2, 2, grid.shape[3])
    assert "2 x 2 tokens" in next(list_contents(FeatureStore.open(tmp_path / "tokens.zarr"))).state

    # Not asked for, it is what the store has; another is refused.
    again = extract_cohort(section, tmp_path / "tokens.zarr", request(None, name), (0.5, 1.0), options)
    assert again.windows == 25
    assert FeatureStore.open(tmp_path / "tokens.zarr").slide("A1").complete(name)[1.0].tokens == 2
    with pytest.raises(RecipeMismatchError, match="tokens: stored 2, asked 4"):
        extract_cohort(section, tmp_path / "tokens.zarr", request(4, name), (0.5,), options)
    with pytest.raises(RecipeMismatchError, match="tokens: stored nothing, asked 2"):
        extract_cohort(section, tmp_path / "plain.zarr", request(2, name), (0.5,), options)


def test_a_grid_of_one_is_the_mean_of_the_map(section: Cohort, tmp_path: Path) -> None:
    extract_cohort(section, tmp_path / "f.zarr", request(1, "timm:test_efficientnet"), (0.5,))
    stored = FeatureStore.open(tmp_path / "f.zarr").slide("A1").complete("timm:test_efficientnet")[0.5]
    np.testing.assert_allclose(
        stored.token_rows(slice(None))[:, 0, 0], stored.embedding(), rtol=2e-3, atol=1e-4
    )


def test_tokens_beyond_float16_widen_their_array_alone(section: Cohort, tmp_path: Path, monkeypatch) -> None:
    from mmap_st.extract.encoders.encoder import Encoder

    forward = Encoder.forward

    def large(self: Encoder, pixels: Any, step: int) -> Any:
        rows = forward(self, pixels, step)
        rows[:, self.width :] *= 1e6
        return rows

    monkeypatch.setattr(Encoder, "forward", large)
    extract_cohort(section, tmp_path / "f.zarr", request(2), (0.5,), ExtractOptions(chunk=10))
    stored = FeatureStore.open(tmp_path / "f.zarr").slide("A1").complete("timm:test_vit")[0.5]
    assert stored.group["tokens"].dtype == np.float32
    assert stored.group["embedding"].dtype == np.float16
    assert np.abs(stored.token_rows(slice(None))).max() > 65_504


def test_long_rows_are_read_and_kept_few_at_a_time(section: Cohort, tmp_path: Path, monkeypatch) -> None:
    from mmap_st.extract.engine import session
    from mmap_st.extract.store.writing import writer as magnification_write

    row_bytes = 4 * (64 + 100 * 64)
    monkeypatch.setattr(magnification_write, "_CHUNK_BYTES", 6 * row_bytes)
    monkeypatch.setattr(session, "_BATCH_BYTES", 3 * row_bytes)
    batches: list[int] = []
    save = session.SlideSession.save

    def noting(self: Any, source_of: Any, row_of: Any, *rest: Any) -> None:
        batches.append(len(row_of))
        save(self, source_of, row_of, *rest)

    monkeypatch.setattr(session.SlideSession, "save", noting)
    extract_cohort(section, tmp_path / "f.zarr", request(10), (0.5,))
    stored = FeatureStore.open(tmp_path / "f.zarr").slide("A1").complete("timm:test_vit")[0.5]
    assert stored.group["tokens"].chunks[0] == stored.group["embedding"].chunks[0] == 6
    assert max(batches) == 3


# Scales


def test_a_run_says_which_scales_are_far_from_what_is_recommended(
    section: Cohort, tmp_path: Path, monkeypatch
) -> None:
    import dataclasses

    spec = dataclasses.replace(TINY, mpps=(0.5,))
    listener = Notes()
    extract_cohort(
        section, tmp_path / "f.zarr", EncoderRequest(spec, random_weights=True, device="cpu"), (0.5, 2.0), None, listener
    )  # fmt: skip
    assert (
        "timm:test_vit is recommended for 0.5 um/px, and windows are requested at 2 (4 times as coarse) too"
        in listener.notes
    )


# The list


def test_the_list_and_its_filters(mmap, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path), "MMAP_ENCODERS": ""}
    listed = json.loads(mmap("encoders", "--json", **home).stdout)["encoders"]
    assert [one["name"] for one in listed] == list(ENCODERS)
    by_name = {one["name"]: one for one in listed}
    assert by_name["efficientnet-lite0"]["ready"] is True
    assert by_name["uni"]["missing"] == "not fetched yet"
    assert "ask for access at https://huggingface.co/MahmoodLab/UNI" in by_name["uni"]["to_get_it"]
    assert by_name["hibou-b"]["runs_code_of_its_repository"] is True
    assert by_name["conch"]["to_get_it"].startswith("pip install git+https://github.com/mahmoodlab/CONCH")
    assert by_name["virchow2"]["recommended_mpp"] == [0.25, 0.5, 1.0, 2.0]
    open_ones = json.loads(mmap("encoders", "--json", "--open", "--commercial", **home).stdout)["encoders"]
    assert open_ones
    assert all(one["commercial"] and not one["gated"] for one in open_ones)
    table = mmap("encoders", "virch", **home).stdout
    assert "CC-BY-NC-ND-4.0 (non-commercial)" in table
    assert "virchow2:cls" in table
    assert "uni2-h" not in table
    one = mmap("encoders", "virchow2", **home).stdout
    assert "pooling: cls+mean_patch: cat(x[:, 0], x[:, 5:].mean(1))" in one
    none = mmap("encoders", "nothing-like-it", **home)
    assert (none.returncode, none.stdout) == (2, "")
    broken = tmp_path / "broken.toml"
    broken.write_text("[")
    assert mmap("encoders", MMAP_ENCODERS=str(broken)).returncode == 2


def test_one_encoder_by_any_name_that_can_be_given(mmap, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path), "MMAP_ENCODERS": ""}
    upper = mmap("encoders", "UNI", **home)
    assert "to get it: ask for access at https://huggingface.co/MahmoodLab/UNI" in upper.stdout
    assert "name: timm:test_vit" in mmap("encoders", "timm:test_vit", **home).stdout
    near = mmap("encoders", "uni2h", **home)
    assert (near.returncode, "did you mean uni2-h" in near.stderr) == (2, True)
    assert "is left by these filters" in mmap("encoders", "conch", "--ready", **home).stderr
    one = json.loads(mmap("encoders", "virchow2", "--json", **home).stdout)["encoders"]
    assert [encoder["name"] for encoder in one] == ["virchow2"]


def test_random_weights_leave_a_trace(section: Cohort, tmp_path: Path) -> None:
    extract_cohort(section, tmp_path / "f.zarr", request(), (0.5,))
    assert "random weights" in next(list_contents(FeatureStore.open(tmp_path / "f.zarr"))).state


HEAVY = ("torch", "timm", "transformers", "open_clip", "torchvision", "zarr", "anndata", "faiss")


@pytest.mark.parametrize(
    "program",
    [
        "import mmap_st",
        "import mmap_st.cli",
        "import mmap_st.extract.encoders.catalogue as l; list(l.listed_encoders())",
        "import runpy; sys.argv = ['mmap', '--help']; runpy.run_module('mmap_st', run_name='__main__')",
        "import runpy; sys.argv = ['mmap', 'encoders']; runpy.run_module('mmap_st', run_name='__main__')",
    ],
)
def test_nothing_heavy_is_imported_and_no_network_used(tmp_path: Path, program: str) -> None:
    """Listing builds nothing: a socket that is opened, or torch that is imported, would end these programs."""
    guard = f"""
import atexit, socket, sys
def refuse(*_, **__):
    raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
def look():
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print("HEAVY", heavy, file=sys.stderr)
atexit.register(look)
{program}
"""
    shown = subprocess.run(
        [sys.executable, "-c", guard],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HOME": str(tmp_path)},
    )
    assert shown.returncode == 0, shown.stderr
    assert "HEAVY []" in shown.stderr


# The doctor


def test_the_doctor_knows_the_packaged_encoder_and_sees_other_numbers(monkeypatch) -> None:
    spec = encoder_spec("efficientnet-lite0")
    findings = {f.what: f for f in examine_encoder(spec, device="cpu")}
    assert not any(f.trouble for f in findings.values())
    assert findings["agrees with what is known"].found.startswith("relative difference")
    half = {f.what: f for f in examine_encoder(spec, device="cpu", precision="bf16")}
    assert not half["agrees with what is known"].trouble
    import dataclasses

    wrong = dataclasses.replace(spec.preprocessing, mean=(0.4, 0.5, 0.6))
    other = {f.what: f for f in examine_encoder(dataclasses.replace(spec, preprocessing=wrong), device="cpu")}
    assert "differs from the reference" in other["agrees with what is known"].trouble


def test_the_doctor_knows_the_vit_of_the_shared_weights(shared: Path) -> None:
    weights = shared / "weights" / "dinov2_vits14_fp16.safetensors"
    findings = {
        f.what: f for f in examine_encoder(encoder_spec("dinov2-vits14"), weights=weights, device="cpu")
    }
    assert findings["agrees with what is known"].found.startswith("relative difference")
    assert not any(f.trouble for f in findings.values())


def test_the_doctor_says_what_keeps_an_encoder_from_loading(tmp_path: Path) -> None:
    (finding,) = examine_encoder(encoder_spec("uni"), weights=tmp_path / "no.pth", device="cpu")
    assert "do not exist" in finding.trouble
    unknown = {f.what: f for f in examine_encoder(TINY, random_weights=True, device="cpu")}
    assert unknown["agrees with what is known"].found == "there is no reference embedding for these weights"


def test_the_doctor_of_the_machine(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MMAP_ENCODERS", str(tmp_path / "encoders.toml"))
    (tmp_path / "encoders.toml").write_text('[weights]\nuni = "gone.pth"\n')
    findings = {f.what: f for f in examine_machine(tmp_path)}
    assert {"Python", "GPU", "CPU", "faiss", "slides", "hub", "disk"} <= findings.keys()
    assert "weights do not exist: uni" in findings["encoders.toml"].trouble
    (tmp_path / "encoders.toml").write_text('[weights]\nunni = "gone.pth"\n')
    (tmp_path / "gone.pth").write_text("")
    misspelt = {f.what: f for f in examine_machine(tmp_path)}
    assert "no encoder is called unni (did you mean uni" in misspelt["encoders.toml"].trouble
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1e9})())
    worse = {f.what: f for f in examine_machine(tmp_path)}
    assert "mmap-st[cpu]" in worse["faiss"].trouble
    assert worse["disk"].trouble == "make room."
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "nowhere")
    assert "HF_ENDPOINT is not an address" in machine._hub().trouble
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "gone.pth" / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "set HF_HOME" in machine._hub().trouble


def test_the_doctor_examines_encoders_of_any_size_at_auto_precision(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "encoders.md").read_text("utf-8")
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(.*?)```", text, flags=re.S)[0])
    findings = examine_encoder(encoder_spec(f"{tmp_path / 'mine.py'}:make"), device="cpu", precision="auto")
    assert not any(finding.trouble for finding in findings)


def test_the_doctor_ends_with_its_finding(mmap, tmp_path: Path) -> None:
    well = mmap("doctor", "--encoder", "timm:test_vit", "--random-weights", "--device", "cpu")
    assert well.returncode == 0, well.stderr
    assert "windows/s" in well.stdout
    ill = mmap("doctor", "--encoder", "uni", "--weights", str(tmp_path / "no.pth"), "--device", "cpu")
    assert ill.returncode == 1
    assert mmap("doctor", "--weights", "w.pth").returncode == 2
    assert mmap("doctor", "--encoder", "uni", "--precision", "fp8").returncode == 2
    assert "do not exist" in ill.stdout


def test_the_documented_encoder_embeds(mmap, write_section, tmp_path: Path) -> None:
    """The example of docs/encoders.md, as a user would run it."""
    text = (Path(__file__).parents[3] / "docs" / "encoders.md").read_text("utf-8")
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(.*?)```", text, flags=re.S)[0])
    words = [
        "extract",
        f"her2st:{write_section('A1')}",
        "f.zarr",
        "--encoder",
        "mine.py:make",
        "--magnifications",
        "20,10",
    ]
    shown = subprocess.run(
        [sys.executable, "-m", "mmap_st", *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert shown.returncode == 0, shown.stderr
    # The same name does for what is stored.
    again = mmap("prototypes", "f.zarr", "--encoder", "mine.py:make", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    stored = FeatureStore.open(tmp_path / "f.zarr").slide("A1").complete("colour-grid")
    assert {mpp: m.width for mpp, m in stored.items()} == {0.5: 48, 1.0: 48}


def test_the_documented_names_and_options_exist(mmap) -> None:
    text = (Path(__file__).parents[3] / "docs" / "encoders.md").read_text("utf-8")
    helps = (
        mmap("extract", "--help").stdout + mmap("encoders", "--help").stdout + mmap("doctor", "--help").stdout
    )
    for option in set(re.findall(r"`(--[a-z-]+)", text)):
        assert option in helps, option
    for name in ("phikon", "midnight-12k", "exaone-path", "genbio-pathfm", "conch-v1.5", "virchow2:cls"):
        assert name in text
        assert name in ENCODERS
