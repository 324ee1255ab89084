"""Files that others made, or that were damaged: no traceback, no hang, and no number that is silently wrong.

What is tried is drawn from a seed; ``MMAP_FUZZ=20`` tries twenty times as much.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmap_st as mm
from mmap_st.extract.store import FeatureStore

Command = Callable[..., subprocess.CompletedProcess[str]]
TIMES = int(os.environ.get("MMAP_FUZZ", "1"))
ENCODER = "efficientnet-lite0"
SMALL = "timm:test_efficientnet"


def turned(content: bytes, rng: random.Random) -> bytes:
    """One bit turned, some bytes cut off, overwritten, or inserted."""
    found = bytearray(content)
    place = rng.randrange(max(len(found), 1))
    how = rng.randrange(4)
    if how == 0 and found:
        found[place] ^= 1 << rng.randrange(8)
    elif how == 1:
        del found[place:]
    elif how == 2:
        found[place : place + 8] = rng.randbytes(8)
    else:
        found[place:place] = rng.randbytes(rng.randrange(1, 9))
    return bytes(found)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part of it replaced, left out, doubled or exchanged."""
    odd = (None, -1, 0, 1e308, "x", "", [], {}, True, [1, 2], {"a": 1}, "\u202e[red]", 10**400)
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        how = rng.randrange(4)
        if how == 0:
            return value[:place] + value[place + 1 :]
        if how == 1:
            return [*value, value[place]]
        if how == 2:
            return value[place:] + value[:place]
        return [*value[:place], changed(value[place], rng), *value[place + 1 :]]
    return rng.choice(odd)


def check(shown: subprocess.CompletedProcess[str], *, allowed: tuple[int, ...] = (0, 1, 2)) -> None:
    assert shown.returncode in allowed, shown.stderr
    assert "Traceback" not in shown.stderr + shown.stdout, shown.stderr
    assert "a defect of the program" not in shown.stderr, shown.stderr


def predictions(folder: Path) -> dict[str, np.ndarray]:
    import anndata

    found = {}
    for file in sorted(folder.glob("*.h5ad")):
        table = anndata.read_h5ad(file)
        found[file.stem] = np.concatenate(
            [np.asarray(table.X, float).ravel(), np.asarray(table.obsm["spatial"], float).ravel()]
        )
        found[file.stem + " genes"] = np.array(table.var_names)
    return found


def same(found: dict[str, np.ndarray], good: dict[str, np.ndarray]) -> bool:
    """Whether each slide that was predicted is predicted as it was."""
    return all(np.array_equal(found[key], good[key], equal_nan=found[key].dtype.kind == "f") for key in found)


def numbers_of(value: Any, key: str = "") -> dict[str, float]:
    """All numbers of a JSON value, by their path."""
    if isinstance(value, dict):
        parts = [numbers_of(inner, f"{key}/{name}") for name, inner in value.items()]
        return {path: number for part in parts for path, number in part.items()}
    return {key: float("nan") if value is None else float(value)}


@pytest.fixture(scope="module")
def good(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("good") / "out"
    mm.predict(tiny.run, tiny.store, out=out, progress=False)
    return predictions(out)


@pytest.mark.parametrize("seed", range(25 * TIMES))
def test_a_changed_head_json(tiny: Any, good: Any, mmap: Command, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    run = Path(shutil.copytree(tiny.run, tmp_path / "run"))
    file = run / "head.json"
    content = json.loads(file.read_text())
    if seed % 3 == 0:
        file.write_bytes(turned(file.read_bytes(), rng))
    else:
        if seed % 3 == 1:
            content.pop("sha256")  # as runs of earlier versions are
        file.write_text(json.dumps(changed(content, rng)))
    shown = mmap("predict", run, tiny.store, "--out", tmp_path / "out")
    check(shown)
    if shown.returncode == 0 and seed % 3 != 1:
        assert same(predictions(tmp_path / "out"), good)
    if seed % 5 == 0:  # they take their time to be drawn
        check(mmap("report", run, "--out", tmp_path / "maps", "--store", tiny.store))


def damages(store: Path, rng: random.Random) -> Iterator[Path]:
    """Damage one file of a store, without end; it is put back afterwards."""
    files = sorted(file for file in store.rglob("*") if file.is_file())
    while True:
        kind = rng.random() < 0.5
        file = rng.choice([file for file in files if (file.name == "zarr.json") == kind])
        before, how = file.read_bytes(), rng.randrange(3)
        if how == 0 and file.name == "zarr.json":
            file.write_text(json.dumps(changed(json.loads(before), rng)))
        elif how == 1 and file.name != "zarr.json":
            file.unlink()
        else:
            file.write_bytes(turned(before, rng))
        yield file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(before)


def test_damaged_stores(tiny: Any, good: Any, mmap: Command, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort.csv"
    check(mmap("cohort", f"her2st:{tiny.her2st}", "--out", cohort), allowed=(0,))
    store = Path(shutil.copytree(tiny.store, tmp_path / "f.zarr"))
    fit = ("--encoder", ENCODER, "--head", "ridge", "--set", "alpha=1e4", "--genes", "mean:10")
    metrics = json.loads((tiny.run / "metrics.json").read_text())["test"]
    refused = 0
    for number, file in enumerate(damages(store, random.Random(0))):
        if number == 25 * TIMES:
            break
        out = tmp_path / str(number)
        check(mmap("info", store))
        shown = mmap("predict", tiny.run, store, "--out", out / "predictions")
        check(shown)
        assert same(predictions(out / "predictions"), good), file
        refused += shown.returncode != 0
        # One of the others each time: they share what reads.
        if number % 4 == 0:
            shown = mmap("fit-head", cohort, store, *fit, "--test", "patient=B", "--out", out / "run")
            check(shown)
            if shown.returncode == 0:
                found = json.loads((out / "run" / "metrics.json").read_text())["test"]
                assert numbers_of(found) == pytest.approx(numbers_of(metrics), nan_ok=True), file
        elif number % 4 == 1:
            check(mmap("evaluate", cohort, store, *fit, "--jobs", "1", "--out", out / "cv"))
        elif number % 8 == 2:
            check(mmap("report", tiny.run, "--out", out / "maps", "--store", store))
    assert refused >= 5 * TIMES


def pictures(folder: Path) -> dict[str, Path]:
    """The same picture in every format that can be written here."""
    import tifffile

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, 8, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((512, 384), 3))
    made = {}
    for suffix in ("png", "jpg"):
        made[suffix] = folder / f"a.{suffix}"
        Image.fromarray(pixels).save(made[suffix])
    kinds: dict[str, dict[str, Any]] = {
        "tiled": {"tile": (128, 128), "compression": "jpeg", "photometric": "ycbcr", "subsampling": (1, 1)},
        "strips": {"rowsperstrip": 16, "compression": "zlib"},
        "ome": {"tile": (128, 128), "compression": "lzw", "ome": True},
    }
    for name, options in kinds.items():
        made[name] = folder / f"{name}.{'ome.tif' if options.pop('ome', False) else 'tif'}"
        tifffile.imwrite(made[name], pixels, resolution=(20_000, 20_000), resolutionunit=3, **options)
    return made


@pytest.mark.parametrize("seed", range(25 * TIMES))
def test_a_changed_image(mmap: Command, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    made = pictures(tmp_path)
    name = sorted(made)[seed % len(made)]
    lines = ["slide,patient,image,mpp", f"bad,P,{made[name].name},0.5", "good,Q,good.png,0.5"]
    shutil.copy(made["png"], tmp_path / "good.png")
    (tmp_path / "cohort.csv").write_text("\n".join(lines))
    made[name].write_bytes(turned(made[name].read_bytes(), rng))
    shown = mmap("cohort", "check", tmp_path / "cohort.csv")
    check(shown)
    assert "good" in shown.stdout
    shown = mmap(
        "extract", tmp_path / "cohort.csv", tmp_path / "f.zarr", "--encoder", SMALL, "--random-weights",
        "--mpp", "4", "--spots", "grid:200",
    )  # fmt: skip
    check(shown)
    if (tmp_path / "f.zarr").exists():
        for slide in FeatureStore.open(tmp_path / "f.zarr"):
            FeatureStore.open(tmp_path / "f.zarr")[slide].verify(SMALL)
