"""Any name that a slide can have goes the whole way, or is refused in one sentence when its cohort is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mmap_st as mm
from mmap_st.data.cohort import Cohort, CohortSlide, write_cohort
from mmap_st.data.splits import slides_where, where_text
from mmap_st.errors import CohortError, SplitError, WriteError
from mmap_st.extract.engine import preview_cohort
from mmap_st.extract.imports import ImportRequest, import_features
from mmap_st.extract.store import FeatureStore, encode_name
from mmap_st.files import MOST_BYTES, file_name, refuse_clashes, replacing, shortened
from mmap_st.head.runs import prediction_file
from mmap_st.report import report_run

NAMES = (
    "zarr.json", ".zgroup", ".zattrs", "spots", "prototypes", ".", "..", "...", "con", "nul", "A1", "a1", "A1.",
    "A1..", "x" * 238, "x" * 240, "x" * 243, "x" * 244, "y" * 255, "z" * 300, "é" * 100, "患" * 400, "n\nl", "t\tb",
    "\x01\x7f", "__x", "x.partial", "~", "%41", "A", "c", "-", "-rf", "f.zarr", ".A1.lock", "new", ".h5ad", "a,b",
    'q"q', "a/b", "/abs", "C:\\x", "*?", "[A]1", "=1+1",
)  # fmt: skip
#: Those that go the whole way; the others have folders of the same kind.
TRICKY = (
    "zarr.json", ".", "..", "...", "A1", "a1", "x" * 238, "x" * 244, "y" * 255, "z" * 300, "患" * 400, "n\nl", "a/b",
    "\x01\x7f", "a,b",
)  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, spots, counts and features that every slide shares."""
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    Image.fromarray(rng.integers(60, 255, (400, 400, 3), np.uint8)).save(folder / "image.png")
    ids, (x, y) = [f"s{i}" for i in range(16)], np.meshgrid(np.arange(4), np.arange(4))
    pl.DataFrame({"id": ids, "x": 50.0 + 100 * x.ravel(), "y": 50.0 + 100 * y.ravel()}).write_csv(
        folder / "spots.csv"
    )
    counts = {f"G{i}": rng.poisson(4, 16) for i in range(3)}
    pl.DataFrame({"id": ids} | counts).write_csv(folder / "counts.csv")
    np.save(folder / "features.npy", rng.normal(size=(16, 4)).astype(np.float32))
    return folder


def cohort_of(tables: Path, names: tuple[str, ...]) -> Cohort:
    rows = [
        CohortSlide(
            name, f"P{name}", tables / "image.png", tables / "spots.csv", tables / "counts.csv", "table", 1.0
        )
        for name in names
    ]
    return Cohort(tuple(rows), "a table")


def test_every_name_goes_the_whole_way(tables: Path, tmp_path: Path) -> None:
    cohort = cohort_of(tables, TRICKY)
    write_cohort(cohort, tmp_path / "cohort.csv")
    assert mm.read_cohort(tmp_path / "cohort.csv").names == TRICKY
    for name in TRICKY:
        request = ImportRequest("enc", 0.5, tables / "features.npy", slide=name, cohort=cohort)
        assert import_features(request, tmp_path / "s.zarr").failed == {}
    store = FeatureStore(tmp_path / "s.zarr")
    assert store.slides == tuple(sorted(TRICKY))
    run = mm.fit_head(
        cohort, store, encoder="enc", head="mean", genes="all",
        test={"slide": TRICKY[:-2]}, out=tmp_path / "run", progress=False,
    )  # fmt: skip
    report = mm.predict(run, store, tmp_path / "p", slides=TRICKY, progress=False)
    assert sorted(report.written) == sorted(TRICKY)
    assert len({path.name.casefold() for path in report.written.values()}) == len(TRICKY) - 1  # A1 and a1
    assert all(path.parent == tmp_path / "p" and path.is_file() for path in report.written.values())
    drawn = preview_cohort(cohort_of(tables, TRICKY[5:9]), None, tmp_path / "pictures")
    assert list(drawn.written) == list(TRICKY[5:9])
    assert len(list((tmp_path / "pictures").iterdir())) == len(TRICKY[5:9])
    for name in set(TRICKY) - {"A1", "x" * 244, "."}:
        (tmp_path / "p" / prediction_file(Path(), name)).unlink()
    assert len(report_run(tmp_path / "p", tmp_path / "figures", ["G0"])) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cohort.csv", "figures", "p", "pictures", "run", "s.zarr", "s.zarr.locks",
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_a_name_that_worked_has_the_folder_that_it_had(number: int) -> None:
    name, most = NAMES[number], MOST_BYTES
    before = "".join(
        chr(b) if chr(b).isascii() and (chr(b).isalnum() or chr(b) in "._-") else f"%{b:02X}"
        for b in name.encode()
    )
    before = before.replace(".", "%2E") if name in (".", "..") else before
    if len(before) <= most and name != "zarr.json":
        assert encode_name(name) == before
    else:
        assert len(encode_name(name)) <= most
        assert encode_name(name)[:3] in (before[:3], "%7A")


@given(st.lists(st.text(min_size=1, max_size=400), min_size=2, max_size=8, unique=True))
def test_encoded_names_are_short_safe_and_distinct(names: list[str]) -> None:
    keys = [encode_name(name) for name in names]
    assert len(set(keys)) == len(names)
    for key in keys:
        assert len(key) <= MOST_BYTES
        assert set(key) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-%~")
        assert key not in ("", ".", "..", "zarr.json")
        assert len(file_name(key, ".holder.json")) <= MOST_BYTES


def test_long_names_that_begin_alike_stay_apart() -> None:
    names = [f"{'x' * 250}{number}" * 2 for number in range(50)]
    assert len({encode_name(name) for name in names}) == 50
    assert len({shortened(name) for name in names}) == 50
    assert all(encode_name(name).startswith("x" * 100) for name in names)
    assert shortened("é" * 127) == "é" * 127
    assert len(shortened("é" * 128).encode()) <= MOST_BYTES


def test_a_file_of_the_longest_name_is_replaced_whole(tmp_path: Path) -> None:
    for ending in ("a", "b"):
        with replacing(tmp_path / ("x" * 254 + ending)) as draft:
            draft.write_text(ending)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_run_of_the_longest_name_is_written_and_replaced(tables: Path, tmp_path: Path) -> None:
    cohort, out = cohort_of(tables, ("A", "B")), tmp_path / ("r" * MOST_BYTES)
    for name in ("A", "B"):
        request = ImportRequest("e" * 255, 0.5, tables / "features.npy", slide=name, cohort=cohort)
        assert import_features(request, tmp_path / "s.zarr").failed == {}
    for overwrite in (False, True):
        mm.fit_head(
            cohort, tmp_path / "s.zarr", encoder="e" * 255, head="mean", genes="all", out=out,
            overwrite=overwrite, progress=False,
        )  # fmt: skip
    assert (out / "head.json").is_file()


@pytest.mark.parametrize("column", ["slide", "patient"])
@pytest.mark.parametrize(("name", "found"), [("a\0b", "a NUL"), ("a\udc80", "bytes that are not UTF-8")])
def test_what_is_no_text_is_refused_with_its_cohort(column: str, name: str, found: str) -> None:
    cells = {"slide": "A", column: name}
    with pytest.raises(CohortError, match=f"the {column} .* has {found} in it; rename it") as caught:
        Cohort((CohortSlide(**cells),), "her2st:x")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("column", ["image", "spots", "counts", "labels"])
def test_paths_that_are_no_text_are_read_and_not_written(column: str, tmp_path: Path, mmap: Callable) -> None:
    cohort = Cohort((CohortSlide("A", **{column: tmp_path / "a\udc80"}),), "her2st:x")
    with pytest.raises(CohortError, match=f"the {column} .* bytes that are not UTF-8"):
        write_cohort(cohort, tmp_path / "c.csv")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c.csv").write_text(f"slide,{column}\nA,a\0b\n")
    done = mmap("cohort", "check", tmp_path / "c.csv")
    assert done.returncode == 2
    assert f"the {column}" in done.stderr
    assert "a NUL" in done.stderr


def test_names_that_a_file_system_takes_for_the_same(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_clashes(("A1", "a1"), tmp_path / "new")  # not here
    monkeypatch.setattr("mmap_st.files._ignores_case", lambda folder: True)
    refuse_clashes(("A1", "B1", "A1"), tmp_path)
    cohort = cohort_of(tables, ("A1", "a1"))
    with pytest.raises(WriteError, match="A1 and a1 would be the same file"):
        preview_cohort(cohort, None, tmp_path / "pictures")
    for name, refused in (("A1", False), ("a1", True)):
        request = ImportRequest("enc", 0.5, tables / "features.npy", slide=name, cohort=cohort)
        if refused:
            with pytest.raises(WriteError, match="A1 and a1 would be the same file"):
                import_features(request, tmp_path / "s.zarr")
        else:
            import_features(request, tmp_path / "s.zarr")
    with pytest.raises(WriteError, match="A1 and a1 would be the same file"):
        mm.embed(cohort, tmp_path / "s.zarr", encoder="efficientnet-lite0", mpp=1.0, progress=False)
    assert FeatureStore(tmp_path / "s.zarr").slides == ("A1",)


TEXTS = st.text(min_size=1, max_size=30).filter(lambda text: text == text.strip() and "\0" not in text)


@given(st.lists(TEXTS, min_size=1, unique=True))
def test_every_name_can_be_named_in_a_split(names: list[str]) -> None:
    cohort = Cohort(tuple(CohortSlide(name) for name in names), "a table")
    assert set(slides_where(cohort, where_text({"slide": names[:3]}))) == set(names[:3])


@pytest.mark.parametrize("text", ["x" * 5000, "slide=" + "x" * 200_000])
def test_a_where_that_is_too_long_is_one_sentence(text: str) -> None:
    with pytest.raises(SplitError):
        slides_where(Cohort((CohortSlide("A"),), "a table"), text)
