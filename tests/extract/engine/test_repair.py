"""`mmap extract` again makes a damaged slide what it was, and touches nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort
from mmap_st.encoders import CustomModel, EncoderSpec, Pooling, Preprocessing
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.prototypes import CandidateSettings
from mmap_st.prototypes.stored import build_all

MPPS = (0.5, 1.0)
OPTIONS = ExtractOptions(batch_size=8, workers=1, chunk=6)
NAME = "mean-colours"


def mean_colours() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())


SMALL = EncoderRequest(
    EncoderSpec(
        name=NAME,
        model=CustomModel(mean_colours, code="1"),
        input_px=32,
        preprocessing=Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        pooling=Pooling("own"),
    ),
    device="cpu",
    precision="fp32",
)


@pytest.fixture(scope="module")
def cohort(section_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("repair") / "her2st"
    for seed, name in enumerate(("A1", "B1")):
        section_writer(name, side=4, seed=seed, root=root)
    return open_cohort(f"her2st:{root}")


@pytest.fixture(scope="module")
def whole(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "f.zarr"
    assert not extract_cohort(cohort, path, SMALL, MPPS, OPTIONS).failed
    build_all(FeatureStore.open(path), NAME, MPPS, CandidateSettings(clusters=3))
    return path


def contents(path: Path) -> dict[str, bytes]:
    """All that the store says of embeddings and spots; prototypes are built when they are needed."""
    found = {}
    for file in path.rglob("*"):
        key = str(file.relative_to(path))
        if not file.is_file() or "prototypes" in key:
            continue
        found[key] = file.read_bytes()
        if file.name == "zarr.json":
            node = json.loads(found[key])
            node["attributes"].pop("telemetry", None)
            node["attributes"].pop("host_cpus", None)
            found[key] = json.dumps(node, sort_keys=True).encode()
    return found


def turn_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def chunk(array: str, key: str = "0/0") -> str:
    return f"A1/{NAME}/0.5000/{array}/c/{key}"


DAMAGES = {
    **{f"bit of {key}": (turn_a_bit, key) for key in (
        chunk("embedding"), chunk("embedding", "2/0"), chunk("valid", "1"), chunk("in_bounds", "0"),
        chunk("tissue", "0"), "A1/spots/xy/c/0/0", "A1/spots/id/c/0",
    )},
    **{f"no {key}": (Path.unlink, key) for key in (
        chunk("embedding", "1/0"), chunk("valid", "0"), chunk("tissue", "0"), "A1/spots/xy/c/0/0",
        f"A1/{NAME}/0.5000/valid/zarr.json", f"A1/{NAME}/0.5000/zarr.json", "A1/spots/zarr.json",
    )},
    **{f"nonsense in {key}": (lambda file: file.write_bytes(b"{"), f"{key}/zarr.json") for key in (
        "A1", "A1/spots", "A1/spots/xy", f"A1/{NAME}", f"A1/{NAME}/0.5000", f"A1/{NAME}/0.5000/embedding",
    )},
    "another's chunk": (
        lambda file: shutil.copy(str(file).replace("A1", "B1"), file), chunk("embedding"),
    ),
    "another magnification's chunk": (
        lambda file: shutil.copy(str(file).replace("0.5000", "1.0000"), file), chunk("embedding"),
    ),
}  # fmt: skip


#: What a description of an array may say that is valid, and not what was written.
CLAIMS: dict[str, tuple[str, dict[str, object]]] = {
    "more rows": ("embedding", {"shape": [10**12, 12]}),
    "fewer rows": ("embedding", {"shape": [3, 12]}),
    "fewer columns": ("embedding", {"shape": [16, 8]}),
    "whole numbers": ("embedding", {"data_type": "int16", "fill_value": 0}),
    "fewer flags": ("valid", {"shape": [3]}),
    "no flags but numbers": ("valid", {"data_type": "float32", "fill_value": 0.0}),
    "chunks beyond memory": ("embedding", {"chunk_grid": {
        "name": "regular", "configuration": {"chunk_shape": [10**12, 12]}}}),
    "chunks of parts of rows": ("embedding", {"chunk_grid": {
        "name": "regular", "configuration": {"chunk_shape": [6, 7]}}}),
}  # fmt: skip


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("claim", CLAIMS)
def test_an_array_whose_description_claims_something_else_is_made_what_it_was(
    cohort: Cohort, whole: Path, tmp_path: Path, claim: str, published: bool
) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "f.zarr"))
    group = path / "A1" / NAME / "0.5000"
    array, change = CLAIMS[claim]
    description = json.loads((group / array / "zarr.json").read_text())
    assert any(description[key] != value for key, value in change.items())
    (group / array / "zarr.json").write_text(json.dumps(description | change))
    if not published:  # as a run left it that was killed before its last step
        node = json.loads((group / "zarr.json").read_text())
        for key in ("complete", "digests"):
            del node["attributes"][key]
        (group / "zarr.json").write_text(json.dumps(node))
    assert not extract_cohort(cohort, path, SMALL, MPPS, OPTIONS).failed
    assert contents(path) == contents(whole)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_slide_is_made_what_it_was(
    cohort: Cohort, whole: Path, tmp_path: Path, damage: str
) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "f.zarr"))
    how, key = DAMAGES[damage]
    how(path / key)
    report = extract_cohort(cohort, path, SMALL, MPPS, OPTIONS)
    assert not report.failed
    assert contents(path) == contents(whole)
    store = FeatureStore.open(path)
    store.slide("A1").verify(NAME)
    again = build_all(store, NAME, MPPS, CandidateSettings(clusters=3))
    assert not again.failed


def test_only_damaged_chunks_are_embedded_again(cohort: Cohort, whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "f.zarr"))
    turn_a_bit(path / chunk("embedding"))
    report = extract_cohort(cohort, path, SMALL, MPPS, OPTIONS)
    assert report.telemetry.windows == OPTIONS.chunk


def test_chunks_that_an_unfinished_slide_lost_are_embedded_again(
    cohort: Cohort, whole: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "f.zarr"))
    description = path / "A1" / NAME / "0.5000" / "zarr.json"
    node = json.loads(description.read_text())
    node["attributes"] |= {"complete": False, "chunks_done": [0, 1]}
    description.write_text(json.dumps(node))
    (path / chunk("embedding", "0/0")).unlink()
    turn_a_bit(path / chunk("embedding", "1/0"))
    assert not extract_cohort(cohort, path, SMALL, MPPS, OPTIONS).failed
    assert contents(path) == contents(whole)


def test_embeddings_of_a_repaired_slide_are_finite(whole: Path) -> None:
    assert np.isfinite(FeatureStore.open(whole)["A1"].complete(NAME)[0.5].embedding()).all()


@pytest.mark.parametrize("key", [chunk("embedding"), f"A1/{NAME}/0.5000/valid/zarr.json"])
def test_a_link_is_left_to_its_owner_and_nothing_that_is_there_is_lost(
    cohort: Cohort, whole: Path, tmp_path: Path, key: str
) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "f.zarr"))
    theirs = Path((path / key).rename(tmp_path / "theirs"))
    (path / key).symlink_to(theirs)
    report = extract_cohort(cohort, path, SMALL, MPPS, OPTIONS)
    assert "is a link" in str(report.failed["A1"])
    assert report.telemetry.windows == 0
    (path / key).unlink()
    theirs.rename(path / key)
    assert contents(path) == contents(whole)
