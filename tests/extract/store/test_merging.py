"""Stores in one: what is copied is what was there, and what cannot be both is refused by slide."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.spots import Spots
from mmap_st.errors import StoreError
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.stored_slide import SlideInfo
from mmap_st.extract.store.upkeep.merging import MergeReport, merge_into
from mmap_st.extract.store.upkeep.packing import pack_into
from mmap_st.extract.store.writing.journal import Journal, journal_path
from mmap_st.extract.store.writing.lock import slide_lock
from mmap_st.extract.store.writing.writer import MagnificationWriter, write_slide
from mmap_st.prototypes.stored import build_all
from tests.extract.store.stores import RECIPE, SETTINGS, WIDTH, N, aged, made, read, unfinished

INFO = SlideInfo("A", "P0", "a.tif", (100, 80), 0.25, "cohort")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("s") / "f.zarr", tokens=2)


def merge(out: Path, *paths: Path) -> MergeReport:
    return merge_into([FeatureStore(path) for path in paths], out)


def bytes_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def slide_in(path: Path, info: SlideInfo = INFO, *, shift: float = 0.0, n: int = N) -> FeatureStore:
    store = FeatureStore.create(path)
    spots = Spots(tuple(f"A{i}" for i in range(n)), np.arange(2.0 * n).reshape(n, 2) + shift)
    write_slide(store, info, spots)
    return store


def embedded(
    store: FeatureStore,
    mpp: float,
    *,
    value: float = 1.0,
    chunk: int = 5,
    width: int = WIDTH,
    **recipe: object,
) -> None:
    parts = {**RECIPE, "mpp": mpp, **recipe}
    name = str(parts["encoder"]["name"])  # type: ignore[index]
    writer = MagnificationWriter(store, "A", name, mpp, parts, (N, width), chunk=chunk)
    for index in writer.pending():
        ones = np.ones(len(writer.rows(index)), np.float32)
        writer.write_chunk(index, np.full((len(ones), width), value, np.float32), ones > 0, ones, ones)
    writer.finish({"device": "cpu"})


def test_every_file_is_copied_and_the_same_again_is_noted(store: Path, tmp_path: Path) -> None:
    packed = tmp_path / "f.zip"
    pack_into(FeatureStore(store), packed)
    out = tmp_path / "out.zarr"
    first = merge(out, packed)
    assert (first.copied, first.there, first.failed) == ({"A": 2, "B": 2}, {}, {})
    assert bytes_of(out) == bytes_of(store)
    again = merge(out, store, packed)
    assert (again.copied, again.there, again.failed) == ({}, {"A": 4, "B": 4}, {})
    assert bytes_of(out) == bytes_of(store)


def test_magnifications_and_encoders_of_a_slide_come_together(tmp_path: Path) -> None:
    one, two = slide_in(tmp_path / "1.zarr"), slide_in(tmp_path / "2.zarr")
    embedded(one, 0.5)
    embedded(two, 1.0)
    embedded(two, 0.5, encoder={"name": "other"}, width=3)
    two.require_group("A", "other").attrs["telemetry"] = {"windows": 12}
    build_all(two, "enc", (1.0,), SETTINGS)
    out = tmp_path / "out.zarr"
    assert merge(out, one.path, two.path).copied == {"A": 3}
    slide = FeatureStore(out)["A"]
    assert list(slide.complete("enc")) == [0.5, 1.0]
    assert list(slide.complete("other")) == [0.5]
    assert slide.encoder_group("other").attrs["telemetry"] == {"windows": 12}  # type: ignore[union-attr]
    slide.verify("enc")
    assert len(list((out / "A/enc/prototypes").iterdir())) == 2
    # It can be embedded on as any store.
    embedded(FeatureStore.open(out, writable=True), 2.0)


def test_a_store_of_an_earlier_version_is_merged_too(tmp_path: Path) -> None:
    path, out = aged(made(tmp_path / "f.zarr")), tmp_path / "out.zarr"
    assert merge(out, path).copied == {"A": 2, "B": 2}
    assert read(out, whole=True) == read(path, whole=True)
    # By its numbers it is the same as one with check sums, and in other chunks.
    assert merge(out, made(tmp_path / "new.zarr")).there == {"A": 2, "B": 2}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"weights_sha256": "v"},
            "enc at 0.5000 um/px is there made with another recipe (weights_sha256: stored w",
        ),
        ({"precision": "bf16"}, "(precision: stored fp32, asked bf16), and is not replaced by that of"),
        ({"value": 2.0}, "enc at 0.5000 um/px is there with other numbers by the same recipe"),
        ({"mpp": 1.0, "weights_sha256": "v"}, "made otherwise than what"),
        ({"mpp": 1.0, "width": 3}, "dimensions: stored 6, asked 3); merge it into another store"),
    ],
)
def test_what_cannot_be_both_is_refused_and_the_rest_is_merged(
    other: dict, said: str, tmp_path: Path
) -> None:
    one, two = slide_in(tmp_path / "1.zarr"), slide_in(tmp_path / "2.zarr")
    embedded(one, 0.5)
    embedded(two, other.pop("mpp", 0.5), **other)
    embedded(two, 0.5, encoder={"name": "new"})
    out = tmp_path / "out.zarr"
    report = merge(out, one.path, two.path)
    assert said in report.failed["A"]
    assert report.failed["A"].endswith(".")
    assert report.copied == {"A": 2}
    slide = FeatureStore(out)["A"]
    assert slide.embedding("enc", mpp=0.5).tolist() == FeatureStore(one.path)["A"].embedding("enc").tolist()
    assert list(slide.complete("new")) == [0.5]
    before = bytes_of(out)
    assert merge(out, two.path).failed.keys() == {"A"}
    assert bytes_of(out) == before


def test_other_chunks_of_the_same_numbers_are_the_same(tmp_path: Path) -> None:
    one, two = slide_in(tmp_path / "1.zarr"), slide_in(tmp_path / "2.zarr")
    embedded(one, 0.5, chunk=5)
    embedded(two, 0.5, chunk=12)
    assert merge(tmp_path / "out.zarr", one.path, two.path).there == {"A": 1}


@pytest.mark.parametrize(
    ("info", "shift", "said"),
    [
        (INFO, 1.0, r"has it with other spots \(12 there, 12 here\)"),
        (
            SlideInfo("A", "P1", "a.tif", (100, 80), 0.25, "cohort"),
            0.0,
            r"another patient \(P0 there, P1 here\)",
        ),
        (SlideInfo("A", "P0", "a.tif", (100, 90), 0.25, "cohort"), 0.0, "another size in pixels"),
        (
            SlideInfo("A", "P0", "a.tif", (100, 80), 0.5, "cohort"),
            0.0,
            r"another um/px \(0.25 there, 0.5 here\)",
        ),
    ],
)
def test_another_slide_of_the_same_name_is_refused(
    info: SlideInfo, shift: float, said: str, tmp_path: Path
) -> None:
    one, two = slide_in(tmp_path / "1.zarr"), slide_in(tmp_path / "2.zarr", info, shift=shift)
    embedded(one, 0.5)
    embedded(two, 1.0)
    report = merge(tmp_path / "out.zarr", one.path, two.path)
    assert re.search(said, report.failed["A"])
    assert list(FeatureStore(tmp_path / "out.zarr")["A"].complete("enc")) == [0.5]


def test_another_image_is_refused_and_what_was_unknown_is_filled_in(tmp_path: Path) -> None:
    imported = SlideInfo("A", None, None, None, None, None)
    bare, one, two = (
        slide_in(tmp_path / "0.zarr", imported),
        slide_in(tmp_path / "1.zarr"),
        slide_in(tmp_path / "2.zarr"),
    )
    embedded(bare, 2.0, image=None)
    embedded(one, 0.5, image={"sha256": "x", "bytes": 3})
    embedded(two, 1.0, image={"sha256": "y", "bytes": 3})
    out = tmp_path / "out.zarr"
    report = merge(out, bare.path, one.path, two.path)
    assert report.failed["A"] == f"{two.path} has it from another image."
    slide = FeatureStore(out)["A"]
    assert slide.attributes == INFO.attributes
    assert list(slide.complete("enc")) == [0.5, 2.0]


def test_what_is_unfinished_there_gives_way_and_what_is_unfinished_here_stays(tmp_path: Path) -> None:
    path, out = made(tmp_path / "f.zarr"), tmp_path / "out.zarr"
    unfinished(path)
    shutil.copytree(path, out)
    embedded(store := FeatureStore.open(path, writable=True), 2.0)
    journal = journal_path(out, "A", "enc", "2.0000")
    Journal(journal, "r", N, WIDTH).close()
    unfinished(out, "A")
    report = merge(out, store.path)
    assert report.left_out == {"B": f"enc at 2.0000 um/px of {path} is unfinished"}
    assert report.copied == {"A": 1}
    assert list(FeatureStore(out)["A"].complete("enc")) == [0.5, 1.0, 2.0]
    assert not journal.exists()


def test_a_damaged_copy_is_made_again_and_a_damaged_original_is_not_copied(
    store: Path, tmp_path: Path
) -> None:
    out, bad = tmp_path / "out.zarr", Path(shutil.copytree(store, tmp_path / "bad.zarr"))
    (bad / "A/enc/0.5000/embedding/c/1/0").write_bytes(b"x")
    report = merge(out, bad)
    assert f"{bad}/A/enc/0.5000/embedding is damaged" in report.failed["A"]
    assert report.copied == {"A": 1, "B": 2}
    assert not (out / "A/enc/0.5000").exists()
    assert merge(out, bad, store).failed.keys() == {"A"}  # the sound one is merged
    assert list(FeatureStore(out)["A"].complete("enc")) == [0.5, 1.0]
    (out / "B/enc/1.0000/valid/c/1").unlink()
    assert merge(out, store).copied == {"B": 1}
    assert read(out, whole=True) == read(store, whole=True)


def test_links_and_files_that_are_not_the_stores_are_not_followed(store: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(store, tmp_path / "bad.zarr"))
    (bad / "A/mine.txt").write_text("mine")
    chunk = bad / "B/enc/0.5000/valid/c/0"
    chunk.unlink()
    chunk.symlink_to("/etc/hostname")
    report = merge(tmp_path / "out.zarr", bad)
    assert "is a link, which is not followed inside a store" in report.failed["B"]
    assert not (tmp_path / "out.zarr/A/mine.txt").exists()
    assert list(FeatureStore(tmp_path / "out.zarr")["B"].complete("enc")) == [1.0]


def test_a_slide_that_is_being_written_fails_and_the_others_are_merged(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    FeatureStore.create(out)
    with slide_lock(out, "A"):
        report = merge(out, store)
    assert "is writing it" in report.failed["A"]
    assert report.copied == {"B": 2}
    with slide_lock(store, "A"):  # whoever reads does not ask
        assert merge(out, store).copied == {"A": 2}


def test_what_cannot_be_a_target_is_refused_before_any_work(store: Path, tmp_path: Path) -> None:
    packed = tmp_path / "f.zip"
    pack_into(FeatureStore(store), packed)
    with pytest.raises(StoreError, match="is one of the stores to be merged"):
        merge(store, store)
    with pytest.raises(StoreError, match="is a packed store, which cannot be written to"):
        merge(packed, store)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x").write_text("x")
    with pytest.raises(StoreError, match="exists and is not a feature store"):
        merge(tmp_path / "mine", store)
    FeatureStore.create(tmp_path / "empty.zarr")
    with pytest.raises(StoreError, match="there are no slides to merge"):
        merge(tmp_path / "out.zarr", tmp_path / "empty.zarr")
    assert not (tmp_path / "out.zarr").exists()


KILLED = """
import os, sys
from pathlib import Path
from mmap_st.extract.store.storage.folder import StoreFolder
from mmap_st.extract.store.upkeep.merging import merge_into
from mmap_st.extract.store.reader import FeatureStore
write, left = StoreFolder.set_sync, [int(sys.argv[3])]
def set_sync(self, key, value):
    left[0] -= 1
    if left[0] < 0:
        if left[0] % 2:  # in the middle of a file
            Path(self.root, key).parent.mkdir(parents=True, exist_ok=True)
            Path(self.root, f"{key}.{'0' * 32}.partial").write_bytes(value.to_bytes()[:5])
        os.kill(os.getpid(), 9)
    return write(self, key, value)
StoreFolder.set_sync = set_sync
merge_into([FeatureStore(sys.argv[1])], Path(sys.argv[2]))
"""


def test_a_killed_process_leaves_nothing_that_passes_for_whole(store: Path, tmp_path: Path) -> None:
    out, expected, kills = tmp_path / "out.zarr", read(store, whole=True), 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while True:
        done = subprocess.run(
            [sys.executable, "-c", KILLED, store, out, str(3 + 9 * kills)], check=False, env=environment
        )
        for file in out.rglob("zarr.json"):
            if json.loads(file.read_text())["attributes"].get("complete"):
                name = file.parent.relative_to(out)
                assert bytes_of(file.parent) == bytes_of(store / name)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        kills += 1
    assert kills > 1
    assert read(out, whole=True) == expected
    assert bytes_of(out) == bytes_of(store)
