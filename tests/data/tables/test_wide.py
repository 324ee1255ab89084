"""Tables with many columns: the fast way reads what the plain one does, and width costs nothing."""

import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.readers import read_counts
from mmap_st.data.tables import read_header, wide
from mmap_st.errors import CountsError

NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.floats(-1e6, 1e6).map(repr),
    st.sampled_from(["1e3", "+2", "-0.5", ".5", "3.", " 4 ", '"7"', "inf"]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.integers(1, 5).flatmap(lambda g: st.lists(st.lists(NUMBERS, min_size=g, max_size=g), min_size=1)),
    st.sampled_from([",", "\t", ";"]),
    st.booleans(),
)
def test_the_fast_way_reads_what_the_plain_one_does(
    tmp_path: Path, rows: list[list[str]], separator: str, quoted: bool
) -> None:
    path = tmp_path / "S.csv"
    names = [f'"s{separator}{i}"' if quoted else f"s{i}" for i in range(len(rows))]
    header = separator.join(["id", *(f"G{i}" for i in range(len(rows[0])))])
    lines = [separator.join([name, *row]) for name, row in zip(names, rows, strict=True)]
    path.write_text("\n".join([header, *lines]) + "\n")
    form = read_header(path, CountsError)
    columns = list(range(1, len(form.header)))
    careful = wide._careful(path, CountsError, form, 0, columns)
    fast = wide._fast(path, CountsError, form, 0, columns)
    assert fast[0] == careful[0] == [name.strip('"') for name in names]
    np.testing.assert_array_equal(fast[1], careful[1])


def test_width_costs_nothing(tmp_path: Path) -> None:
    """64 spots by 20,000 genes take as long as 20,000 spots by 64 genes, and not a hundred times as long."""
    values = np.random.default_rng(0).poisson(1, (64, 20_000))
    took = {}
    for name, table in (("tall", values.T), ("wide", values)):
        path = tmp_path / f"{name}.csv"
        lines = [",".join(["id", *(f"G{i}" for i in range(table.shape[1]))])]
        lines += [f"s{i}," + ",".join(map(str, row)) for i, row in enumerate(table.tolist())]
        path.write_text("\n".join(lines) + "\n")
        start = time.perf_counter()
        found = read_counts(CohortSlide("S", counts=path, reader="table"))
        took[name] = time.perf_counter() - start
        np.testing.assert_array_equal(found.matrix.toarray(), table)
    assert took["wide"] < 10 * took["tall"]


@pytest.mark.parametrize("kind", [pl.Int64, pl.Float32, pl.String])
def test_wide_parquet(kind: type[pl.DataType], tmp_path: Path) -> None:
    values = np.random.default_rng(0).poisson(1, (8, 300))
    table = pl.DataFrame({f"G{i}": column for i, column in enumerate(values.T)}).cast(kind)
    path = tmp_path / "S.parquet"
    table.insert_column(0, pl.Series("id", [f"s{i}" for i in range(8)])).write_parquet(path)
    np.testing.assert_array_equal(
        read_counts(CohortSlide("S", counts=path, reader="table")).matrix.toarray(), values
    )
