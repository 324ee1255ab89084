"""All that reads a store takes a packed one, and gives the same numbers."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmap_st as mm
from tests.conftest import Tiny

ENCODER = "efficientnet-lite0"


@pytest.fixture(scope="module")
def packed(tiny: Tiny, attending: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `tiny`, with the prototypes of a head that attends to them."""
    out = tmp_path_factory.mktemp("packed") / "features.zarr.zip"
    assert mm.pack_store(tiny.store, out, progress=False).slides == ["A1", "B1", "C1"]
    return out


def files_of(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob(pattern)}


def without_prototypes(packed: Path, folder: Path) -> Path:
    """The same, as it was before a head needed prototypes."""
    out = folder / "bare.zarr.zip"
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            if "/prototypes/" not in name:
                target.writestr(name, source.read(name))
    return out


@pytest.mark.parametrize("bare", [False, True])
def test_a_fit_is_the_same_to_the_bit(
    bare: bool, packed: Path, tiny: Tiny, attending: Any, tmp_path: Path
) -> None:
    store = without_prototypes(packed, tmp_path) if bare else packed
    before = store.read_bytes()
    run = mm.fit_head(
        f"her2st:{tiny.her2st}", store, encoder=ENCODER, settings={"blend": 0.0, "components": 8},
        genes="mean:10", test={"patient": "B"}, out=tmp_path / "run", progress=False,
    )  # fmt: skip
    for pattern in ("head.safetensors", "genes.csv", "*.h5ad"):
        found, expected = files_of(run.path, pattern), files_of(attending.path, pattern)
        assert found.keys() == expected.keys()
        assert found, pattern
        if pattern != "*.h5ad":
            assert found == expected
    one, other = (run.predict(place, "B1") for place in (store, tiny.store))
    assert one.X.tobytes() == other.X.tobytes()
    assert one.layers["spread"].tobytes() == other.layers["spread"].tobytes()
    assert one.obsm["attention"].tobytes() == other.obsm["attention"].tobytes()
    assert store.read_bytes() == before
    assert sorted(p.name for p in store.parent.iterdir() if p.suffix == ".locks") == []


def test_every_command_that_reads_a_store_takes_it(
    packed: Path, tiny: Tiny, tmp_path: Path, mmap: Callable[..., Any]
) -> None:
    her2st = f"her2st:{tiny.her2st}"
    ridge = ("--heads", "ridge", "--genes", "mean:10", "--set", "ridge.alpha=1e4")
    one = ("--head", "ridge", "--genes", "mean:10", "--set", "alpha=1e4", "--encoder", ENCODER)
    printed = {}
    for store in (packed, tiny.store):
        out = tmp_path / store.name
        for words in (
            ("info", store, "--verify"),
            ("evaluate", her2st, store, *one, "--jobs", "1", "--out", out / "evaluated"),
            (
                "compare",
                her2st,
                store,
                "--encoders",
                ENCODER,
                *ridge,
                "--jobs",
                "2",
                "--out",
                out / "compared",
            ),
            ("predict", tiny.run, store, "--out", out / "predicted"),
            ("report", tiny.run, "--store", store, "--out", out / "figures"),
        ):
            done = mmap(*words)
            assert done.returncode == 0, done
            printed[words[0], store.name] = done.stdout
    assert printed["info", packed.name].splitlines()[1:] == printed["info", tiny.store.name].splitlines()[1:]
    for pattern in ("genes.csv", "*.png"):
        found, expected = (files_of(tmp_path / name, pattern) for name in (packed.name, tiny.store.name))
        assert found == expected
        assert found
    viewer = mm.view(packed, open_browser=False)
    viewer.close()
    assert viewer.url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("what", ["extract", "import", "prototypes", "seal"])
def test_what_writes_to_a_store_refuses_it_in_one_sentence(
    what: str, packed: Path, tiny: Tiny, tmp_path: Path, mmap: Callable[..., Any]
) -> None:
    before = packed.read_bytes()
    words = {
        "extract": ("extract", f"her2st:{tiny.her2st}", packed, "--encoder", ENCODER, "--mpp", "0.5"),
        "import": ("import", packed, "--encoder", "x", "--mpp", "1", "--features", tiny.her2st),
        "prototypes": ("prototypes", packed, "--encoder", ENCODER),
        "seal": ("info", packed, "--verify", "--seal"),
    }[what]
    done = mmap(*words)
    assert done.returncode == 2
    assert f"error: {packed} is a packed store, which cannot be written to" in done.stderr
    assert f"unpack it with `mmap merge {packed} --out FOLDER`" in done.stderr
    assert done.stderr.count("\n") == 1
    assert packed.read_bytes() == before
