"""Damaged inputs: never a traceback, never a hang, never a silent wrong result; over a thousand cases."""

import gzip
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.errors import MmapError

sys.path.insert(0, str(Path(__file__).parent))
import layouts

# The same cases in every run: a library written in C may crash on one that was never tried.
Mutation = Callable[[Path, np.random.Generator], bool]


def write_table(root: Path) -> None:
    root.mkdir(parents=True)
    ids = [f"spot{i}" for i in range(12)]
    spots = pl.DataFrame({"id": ids, "x": np.arange(12.0) * 10, "y": np.arange(12.0) % 4 * 10})
    spots.write_csv(root / "S_spots.csv")
    values = dict(zip(layouts.GENES, layouts.counts(12).astype(np.int64).T, strict=True))
    pl.DataFrame({"id": ids, **values}).write_parquet(root / "S_counts.parquet")


def write_xenium_cells(root: Path) -> None:
    bundle = layouts.write_xenium(root, cells="csv.gz")
    (bundle / "transcripts.parquet").unlink()


def write_h5ad(root: Path) -> None:
    root.mkdir(parents=True)
    layouts.make_adata().write_h5ad(root / "S.h5ad")


WRITERS: dict[str, Callable[[Path], object]] = {
    "visium": layouts.write_visium,
    "visium-mtx": lambda root: layouts.write_visium(root, version=1, matrix="mtx"),
    "visium-hd": layouts.write_visium_hd,
    "xenium": layouts.write_xenium,
    "xenium-cells": write_xenium_cells,
    "hest": layouts.write_hest,
    "h5ad": write_h5ad,
    "st": layouts.write_cscc,
    "st-stnet": layouts.write_stnet,
    "table": write_table,
}


def reader_of(name: str) -> str:
    return {"visium-mtx": "visium", "st-stnet": "st", "xenium-cells": "xenium"}.get(name, name)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One sample of each layout, with what it reads as."""
    roots = {}
    for name, write in WRITERS.items():
        roots[name] = tmp_path_factory.mktemp(name) / "S"
        write(roots[name])
        for image in files_of(roots[name], ".png", ".tif", ".jpg", ".jpeg"):
            image.unlink()  # tables alone are damaged here
    return roots


def files_of(root: Path, *suffixes: str) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file() and p.name.endswith(suffixes))


TEXT = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".mtx.gz")


def read_text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def write_text(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def flip_bytes(root: Path, rng: np.random.Generator) -> bool:
    """Some bytes of a file become others."""
    paths = files_of(root, *TEXT, ".json", ".h5", ".h5ad", ".parquet")
    if not paths:
        return False
    path = rng.choice(paths)
    data = bytearray(Path(path).read_bytes())
    for at in rng.integers(0, len(data), rng.integers(1, 6)):
        data[at] ^= int(rng.integers(1, 256))
    Path(path).write_bytes(bytes(data))
    return True


def flip_characters(root: Path, rng: np.random.Generator) -> bool:
    """A character within a text table, packed or not, becomes another."""
    paths = files_of(root, *TEXT)
    if not paths:
        return False
    path = Path(rng.choice(paths))
    text = list(read_text(path))
    for at in rng.integers(0, len(text), rng.integers(1, 4)):
        text[at] = str(rng.choice(list("0x-.,\t\n\"'aé ")))
    write_text(path, "".join(text))
    return True


def truncate(root: Path, rng: np.random.Generator) -> bool:
    """A file ends early."""
    path = Path(rng.choice(files_of(root, *TEXT, ".json", ".h5", ".h5ad", ".parquet")))
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(0, len(data)))])
    return True


def drop_column(root: Path, rng: np.random.Generator) -> bool:
    """A table loses a column."""
    paths = files_of(root, ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")
    if not paths:
        return False
    path = Path(rng.choice(paths))
    if path.suffix == ".parquet":
        table = pl.read_parquet(path)
        table.drop(str(rng.choice(table.columns))).write_parquet(path)
        return True
    separator = "," if ".csv" in path.name else "\t"
    rows = [line.split(separator) for line in read_text(path).splitlines()]
    at = int(rng.integers(0, len(rows[0])))
    write_text(
        path, "\n".join(separator.join(c for i, c in enumerate(row) if i != at) for row in rows) + "\n"
    )
    return True


def change_type(root: Path, rng: np.random.Generator) -> bool:
    """A column of a table becomes words, dates or lists; a value of a JSON file another type."""
    paths = files_of(root, ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".json")
    if not paths:
        return False
    path = Path(rng.choice(paths))
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        value[str(rng.choice(list(value)))] = [None, "many", [], {}, -1, 0, 1e300, True][rng.integers(8)]
        path.write_text(json.dumps(value))
    elif path.suffix == ".parquet":
        table = pl.read_parquet(path)
        column = str(rng.choice(table.columns))
        wrong = [pl.lit("many"), pl.lit(None), pl.lit([1, 2]), pl.lit(True), pl.date(2020, 1, 1)][
            rng.integers(5)
        ]
        table.with_columns(wrong.alias(column)).write_parquet(path)
    else:
        separator = "," if ".csv" in path.name else "\t"
        rows = [line.split(separator) for line in read_text(path).splitlines()]
        at, word = (
            int(rng.integers(0, len(rows[0]))),
            str(rng.choice(["many", "", "1e999", "-3", "0.5", "NaN"])),
        )
        for row in rows[1:]:
            row[at] = word
        write_text(path, "\n".join(separator.join(row) for row in rows) + "\n")
    return True


def shuffle_rows(root: Path, rng: np.random.Generator) -> bool:
    """The rows of a table of positions come in another order: nothing that is read may change."""
    words = ("tissue_positions", "_spots", "spots_", "spot_data", "transcripts", "cells.")
    paths = [
        p for p in files_of(root, ".csv", ".tsv.gz", ".csv.gz", ".parquet") if any(w in p.name for w in words)
    ]
    if not paths:
        return False
    path = Path(rng.choice(paths))
    if path.suffix == ".parquet":
        table = pl.read_parquet(path)
        table[rng.permutation(table.height).tolist()].write_parquet(path)
        return True
    lines = read_text(path).splitlines()
    first = 0 if "positions_list" in path.name else 1
    body = [lines[first:][i] for i in rng.permutation(len(lines) - first)]
    write_text(path, "\n".join([*lines[:first], *body]) + "\n")
    return True


MUTATIONS: dict[str, Mutation] = {
    f.__name__: f for f in (flip_bytes, flip_characters, truncate, drop_column, change_type, shuffle_rows)
}


def read_all(root: Path, name: str) -> tuple[Cohort, list[tuple[object, object]]]:
    cohort = open_cohort(f"{reader_of(name)}:{root}")
    return cohort, [
        (read_spots(row) if row.spots else None, read_counts(row) if row.counts else None)
        for row in cohort.slides
    ]


def read_or_error(root: Path, name: str) -> tuple[list[tuple[object, object]], MmapError | None]:
    try:
        return read_all(root, name)[1], None
    except MmapError as error:
        return [], error


def check_invariants(spots, counts) -> None:
    if spots is not None:
        assert np.isfinite(spots.xy).all()
        assert len(set(spots.ids)) == len(spots.ids) == len(spots.xy) > 0
    if counts is not None:
        values = counts.matrix.data
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert (values == np.floor(values)).all()
        assert counts.matrix.shape == (len(counts.ids), len(counts.genes))
        assert len(set(counts.ids)) == len(counts.ids)
    if spots is not None and counts is not None:
        assert set(spots.ids) & set(counts.ids)


def same(one, other) -> bool:
    (spots, counts), (spots2, counts2) = one, other
    return (
        spots.ids == spots2.ids
        and np.array_equal(spots.xy, spots2.xy)
        and counts.ids == counts2.ids
        and counts.genes == counts2.genes
        and (counts.matrix != counts2.matrix).nnz == 0
    )


@settings(max_examples=1200, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(list(WRITERS)),
    mutation=st.sampled_from(list(MUTATIONS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_damaged_tables_are_refused_in_one_sentence_or_read_as_what_they_say(
    originals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, name: str, mutation: str, seed: int
) -> None:
    root = tmp_path_factory.mktemp("case") / "S"
    shutil.copytree(originals[name], root)
    started = time.perf_counter()
    try:
        if not MUTATIONS[mutation](root, np.random.default_rng(seed)):
            return
        tables, error = read_or_error(root, name)
        if error is not None:
            assert str(error).strip()
            assert "\n" not in str(error).strip()
            assert mutation != "shuffle_rows", error
            assert str(root) in str(error)  # it says where
            return
        for spots, counts in tables:
            check_invariants(spots, counts)
        if mutation == "shuffle_rows":
            assert same(tables[0], read_all(originals[name], name)[1][0])
        assert time.perf_counter() - started < 60
    finally:
        shutil.rmtree(root.parent)


@settings(max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), whole=st.booleans())
def test_damaged_spatialdata_stores(
    tmp_path_factory: pytest.TempPathFactory, spatial_store: Path, seed: int, whole: bool
) -> None:
    """A file of the store has flipped bytes, ends early or is gone."""
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("case") / "S"
    shutil.copytree(spatial_store, root)
    path = Path(rng.choice([p for p in sorted(root.rglob("*")) if p.is_file()]))
    data = bytearray(path.read_bytes())
    if whole:
        path.unlink()
    else:
        for at in rng.integers(0, max(len(data), 1), 3):
            data[at : at + 1] = bytes([int(rng.integers(0, 256))])
        path.write_bytes(bytes(data))
    tables, error = read_or_error(root / "S1.zarr", "spatialdata")
    if error is not None:
        assert str(error).strip()
        assert "\n" not in str(error).strip()
    for spots, counts in tables:
        check_invariants(spots, counts)
    shutil.rmtree(root.parent)


@pytest.fixture(scope="module")
def spatial_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spatialdata")
    layouts.write_spatialdata(root / "S1.zarr")
    return root
