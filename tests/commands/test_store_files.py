"""`mmap pack STORE`, `mmap merge` and `mmap gc`: what they print, and their exit status."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmap_st as mm
from mmap_st.errors import SlidesLeftOutWarning
from mmap_st.extract.store import slide_lock
from tests.conftest import Tiny


@pytest.fixture
def store(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.store, tmp_path / "features.zarr"))


def mark_unfinished(store: Path, slide: str) -> None:
    file = store / slide / "efficientnet-lite0/0.5000/zarr.json"
    node = json.loads(file.read_text())
    node["attributes"]["complete"] = False
    file.write_text(json.dumps(node))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_pack_says_what_is_in_the_file_and_what_is_not(store: Path, mmap: Callable[..., Any]) -> None:
    mark_unfinished(store, "B1")
    out = store.with_name("features.zarr.zip")
    done = mmap("pack", store, out)
    assert done.returncode == 0
    assert done.stdout.startswith("3 slides, ")
    assert done.stdout.splitlines()[-1] == str(out)
    assert done.stderr == "note: B1: efficientnet-lite0 at 0.5000 um/px is unfinished; not packed\n"
    again = mmap("pack", store, out)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "exists; name another file, or give --overwrite" in again.stderr
    before = out.read_bytes()
    assert mmap("pack", store, out, "--overwrite").returncode == 0
    assert out.read_bytes() == before
    (store / "A1/efficientnet-lite0/1.0000/embedding/c/0/0").write_bytes(b"x")
    damaged = mmap("pack", store, out, "--overwrite")
    assert damaged.returncode == 1
    assert "damaged, and not packed" in damaged.stdout
    assert list(mm.FeatureStore(out)["A1"].complete("efficientnet-lite0")) == [0.5]
    with pytest.warns(SlidesLeftOutWarning) as told:
        mm.pack_store(store, out, overwrite=True, progress=False)
    assert [str(one.message).partition(":")[0] for one in told] == ["1 slide failed", "1 slide skipped"]


def test_a_head_is_not_replaced_by_a_store_nor_a_store_by_a_head(
    store: Path, tiny: Tiny, mmap: Callable[..., Any]
) -> None:
    head, packed = store.with_name("head.zip"), store.with_name("f.zip")
    assert mmap("pack", tiny.run, head).returncode == 0
    assert mmap("pack", store, packed).returncode == 0
    before = head.read_bytes(), packed.read_bytes()
    assert "is not a packed store, and would be replaced" in mmap("pack", store, head, "--overwrite").stderr
    assert (
        "is not a packed head, and would be replaced" in mmap("pack", tiny.run, packed, "--overwrite").stderr
    )
    assert (head.read_bytes(), packed.read_bytes()) == before
    with slide_lock(store, "C1"):
        done = mmap("pack", store, packed, "--overwrite")
    assert done.returncode == 2
    assert done.stderr.startswith("error: slide C1: another process (")


def test_what_is_neither_a_head_nor_a_store_is_not_packed(tmp_path: Path, mmap: Callable[..., Any]) -> None:
    table = tmp_path / "cohort.csv"
    table.write_text("slide\nA\n")
    for wrong, said in ((table, "is a file of another kind"), (tmp_path / "none", "does not exist")):
        done = mmap("pack", wrong, tmp_path / "x.zip", COLUMNS="2000")
        assert done.returncode == 2
        assert f"{wrong} {said}; name a run of `mmap fit-head`, or a feature store." in done.stderr
    assert not (tmp_path / "x.zip").exists()


def test_merge_unpacks_and_puts_together(store: Path, mmap: Callable[..., Any]) -> None:
    packed, out = store.with_name("f.zip"), store.with_name("merged.zarr")
    assert mmap("pack", store, packed).returncode == 0
    one = Path(shutil.copytree(store, store.with_name("one.zarr")))
    shutil.rmtree(one / "B1")
    done = mmap("merge", one, "--out", out)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == str(out)
    assert mmap("merge", packed, "--out", out).returncode == 0
    assert files_in(out) == files_in(store)
    # The same patients' slides, by another's account: refused, and the others are done.
    node = json.loads((one / "A1/zarr.json").read_text())
    node["attributes"].update(patient="Z")
    node["attributes"].pop("sha256")
    (one / "A1/zarr.json").write_text(json.dumps(node))
    refused = mmap("merge", one, "--out", out)
    assert refused.returncode == 1
    assert "another patient" in refused.stdout
    assert files_in(out) == files_in(store)
    nothing = mmap("merge", out, "--out", out)
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1)


def test_gc_shows_and_removes(store: Path, mmap: Callable[..., Any]) -> None:
    mark_unfinished(store, "B1")
    draft = store / "A1" / f"zarr.json.{'0' * 32}.partial"
    draft.write_text("half of it")
    (store / "mine.txt").write_text("mine")
    unfinished = store / "B1/efficientnet-lite0/0.5000"
    shown = mmap("gc", store, "--dry-run", "--incomplete")
    assert shown.returncode == 0
    assert draft.exists()
    assert "2 leftovers, " in shown.stdout
    assert shown.stdout.endswith("would be freed\n")
    assert shown.stderr == f"note: 1 file is not the store's, and left alone: {store / 'mine.txt'}\n"
    done = mmap("gc", store)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "1 leftover, 10 bytes freed"
    assert not draft.exists()
    assert unfinished.is_dir()
    with slide_lock(store, "B1"):
        left = mmap("gc", store, "--incomplete")
    assert left.returncode == 1
    assert "is writing it" in left.stdout
    assert unfinished.is_dir()
    assert mmap("gc", store, "--incomplete").returncode == 0
    assert not unfinished.exists()
    assert (store / "mine.txt").exists()
    assert mmap("gc", store, "--incomplete").stdout == "0 leftovers, 0 bytes freed\n"
