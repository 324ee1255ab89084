"""Small files that claim, or become, more than memory can hold: one sentence each, and nothing is taken."""

import gzip
import io
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import polars as pl
import pytest
from scipy import sparse

from mmap_st import memory
from mmap_st.data import hdf5, hdf5_probe
from mmap_st.data.cohort import CohortSlide, read_cohort
from mmap_st.data.gene_names import read_gene_list
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.data.splits import slides_where
from mmap_st.data.spots import read_labels
from mmap_st.data.tables import limits
from mmap_st.errors import MmapError
from mmap_st.extract.imports.files import read_features

sys.path.insert(0, str(Path(__file__).parents[1]))
import layouts

MIB = 1 << 20


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a table might have a quarter of 64 MiB."""
    monkeypatch.setattr(limits, "_LEAST", MIB)
    monkeypatch.setattr(limits, "free_memory", lambda: 64 * MIB)


def bomb(path: Path, start: bytes = b"id,x,y\n", line: bytes = b"aaaa,1,2\n") -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(24):
            file.write(line * (MIB // len(line)))
    assert path.stat().st_size < MIB
    return path


def counts(path: Path, reader: str = "table") -> object:
    return read_counts(CohortSlide("S", counts=path, reader=reader))


def spots(path: Path, reader: str = "table") -> object:
    return read_spots(CohortSlide("S", spots=path, reader=reader))


READS: dict[str, Callable[[Path], object]] = {
    "spots": spots,
    "spots of st": lambda path: spots(path, "st"),
    "counts": counts,
    "counts of st": lambda path: counts(path, "st"),
    "labels": read_labels,
    "cohort": read_cohort,
    "panel": read_gene_list,
    "list of slides": lambda path: slides_where(
        open_cohort(f"images:{layouts.picture(path.with_name('S.png'), 8, 8)}"), str(path)
    ),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("shape", ["rows", "one line"])
def test_gzipped_text_that_expands_without_end(read: str, shape: str, tmp_path: Path) -> None:
    start, line = (b"id,x,y\n", b"aaaa,1,2\n") if shape == "rows" else (b"id,", b"a,1,")
    path = bomb(tmp_path / "S.csv.gz", start, line)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MmapError, match=r"S\.csv\.gz expands to more than 0\.0 GB, a quarter") as refused:
        READS[read](path)
    assert "\n" not in str(refused.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize("read", READS)
def test_gzipped_text_of_lines_that_are_nearly_empty(read: str, tmp_path: Path) -> None:
    """Of a name in Python, the letters are the least."""
    path = tmp_path / "S.csv.gz"
    path.write_bytes(gzip.compress(b"id,x,y\n" + b"\n" * (4 * MIB)))
    with pytest.raises(MmapError, match="expands to more than"):
        READS[read](path)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("row", [b",", b"\t", b"1", b";1"])
def test_no_first_line_is_longer_than_memory(
    row: bytes, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its cells takes more memory than its letters."""
    monkeypatch.setattr("mmap_st.data.tables.text._LONGEST", 1000)
    path = tmp_path / ("S.csv.gz" if packed else "S.csv")
    content = b"id" + row * 1000
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(MmapError, match="has a line of more than") as refused:
        counts(path)
    assert "\n" not in str(refused.value)


def test_parquet_of_equal_values(tmp_path: Path) -> None:
    table = pl.select(id=pl.repeat(1, 3_000_000), x=pl.repeat(0, 3_000_000), y=pl.repeat(0, 3_000_000))
    table.write_parquet(tmp_path / "S.parquet")
    for read in (spots, counts, read_cohort):
        with pytest.raises(MmapError, match=r"its columns have 0\.1 GB"):
            read(tmp_path / "S.parquet")


def claimed_npy(path: Path, shape: tuple[int, ...]) -> Path:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    path.write_bytes(head.getvalue() + bytes(64))
    return path


@pytest.mark.parametrize("shape", [(10**9, 10**9), (10**7, 1024), (10**18, 2)])
def test_npy_that_claims_more_than_it_has(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(MmapError, match=r"S\.npy"):
        read_features(claimed_npy(tmp_path / "S.npy", shape))


def test_npy_with_holes_as_large_as_it_claims(tmp_path: Path) -> None:
    path = claimed_npy(tmp_path / "S.npy", (10**7, 100))
    with path.open("r+b") as file:
        file.truncate(5 * 10**9)
    with pytest.raises(MmapError, match=r"its array has 4\.0 GB"):
        read_features(path)


def test_npz_is_not_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "S.npz", a=np.zeros(10**7))
    (tmp_path / "S.npz").rename(tmp_path / "S.npy")
    with pytest.raises(MmapError, match="archive of several arrays"):
        read_features(tmp_path / "S.npy")


def test_embeddings_in_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S.h5", "w") as file:
        file.create_dataset("features", (10**9, 10**9), "f4", chunks=(64, 64), compression="gzip")
    with pytest.raises(MmapError, match=r"its arrays have 4,000,000,000\.0 GB"):
        read_features(tmp_path / "S.h5")


HUGE = (10**9, 10**6)


def claim(path: Path, name: str, shape: tuple[int, ...], kind: str = "f4", **packing: object) -> None:
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs) if name in file else {}
        file.pop(name, None)
        chunks = tuple(min(64, length) for length in shape)
        made = file.create_dataset(name, shape, kind, chunks=chunks, **packing)
        made.attrs.update(attributes)


@pytest.mark.parametrize("packing", [{}, {"compression": "gzip"}, {"compression": "lzf"}])
@pytest.mark.parametrize(
    ("name", "shape"),
    [("X", HUGE), ("obsm/spatial", (10**10, 2)), ("obs/array_row", (10**11,)), ("X/data", (10**11,))],
)
def test_anndata_that_claims_more_than_memory(
    name: str, shape: tuple[int, ...], packing: dict[str, object], tmp_path: Path
) -> None:
    adata = layouts.make_adata()
    adata.X = sparse.csr_matrix(adata.X) if name.startswith("X/") else adata.X.toarray()
    adata.write_h5ad(tmp_path / "S.h5ad")
    claim(tmp_path / "S.h5ad", name, shape, **packing)
    row = CohortSlide("S", spots=tmp_path / "S.h5ad", counts=tmp_path / "S.h5ad", reader="h5ad")
    for read in (read_counts, *((read_spots,) if not name.startswith("X") else ())):
        with pytest.raises(MmapError, match=r"S\.h5ad: /\S+ has [\d,.]+ GB, and may have") as refused:
            read(row)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["matrix/data", "matrix/barcodes"])
def test_matrices_of_space_ranger_that_claim_more(name: str, tmp_path: Path) -> None:
    layouts.write_visium(tmp_path / "S1")
    row = open_cohort(f"visium:{tmp_path}")["S1"]
    claim(row.counts, name, (10**11,), "i4" if name.endswith("data") else "S18")
    with pytest.raises(MmapError, match=r"matrix\.h5: /\S* has [\d,.]+ GB, and may have"):
        read_counts(row)
    if name.endswith("barcodes"):
        with pytest.raises(MmapError, match=r"/matrix/barcodes has [\d,.]+ GB"):
            read_spots(row)


def test_a_matrix_market_file_that_claims_more(tmp_path: Path) -> None:
    layouts.write_visium(tmp_path / "S1", matrix="mtx")
    row = open_cohort(f"visium:{tmp_path}")["S1"]
    path = row.counts / "matrix.mtx.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    size = next(i for i, line in enumerate(lines) if not line.startswith("%"))
    for claimed, part in (
        (f"{len(layouts.GENES)} 36 {10**12}\n", r"its values have 24,000\.0 GB"),
        (f"{10**9} {10**9} 12\n", "is a matrix of 1000000000 x 1000000000"),
    ):
        path.write_bytes(gzip.compress("".join([*lines[:size], claimed, *lines[size + 1 :]]).encode()))
        with pytest.raises(MmapError, match=part):
            read_counts(row)


def test_the_probe_reads_nothing_that_no_reader_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "S.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("small", data=np.arange(1000), chunks=(100,), compression="lzf")
        file.create_dataset("large", (10**11,), "f8", chunks=(100,), compression="lzf")
    read: list[str] = []
    plain = hdf5_probe._is_plain
    monkeypatch.setattr(hdf5_probe, "_is_plain", lambda item: read.append(item.name) or plain(item))
    hdf5_probe.probe(str(path), 32 * MIB)
    assert read == ["/small"]
    hdf5.check_hdf5(path)


def test_what_fits_is_read(tmp_path: Path) -> None:
    adata = layouts.make_adata()
    adata.write_h5ad(tmp_path / "S.h5ad", compression="gzip")
    assert read_counts(open_cohort(f"h5ad:{tmp_path}")["S"]).genes == layouts.GENES
    np.save(tmp_path / "S.npy", np.ones((5, 4), np.float16))
    assert read_features(tmp_path / "S.npy").embedding.tolist() == [[1] * 4] * 5
    assert isinstance(anndata.read_h5ad(tmp_path / "S.h5ad"), anndata.AnnData)


def test_limits_follow_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:  8388608 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert limits.largest_table() == 2 << 30
    (tmp_path / "memory.max").write_text(f"{6 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{2 << 30}\n")
    assert limits.largest_table() == 1 << 30
    (tmp_path / "memory.max").write_text("max\n")
    assert limits.largest_table() == 2 << 30
    (tmp_path / "meminfo").write_text("MemAvailable:  8 kB\n")
    assert limits.largest_table() == 1 << 28
