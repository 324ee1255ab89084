"""Transcripts of a Xenium section, counted per square and gene.

A section has tens of millions: polars streams the columns that are needed, and holds what it has counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from scipy import sparse

from mmap_st.data.bins import Squares, squares_of
from mmap_st.data.readers.annotated import Features
from mmap_st.data.readers.xenium.features import Panel, panel_of
from mmap_st.data.tables import read_header, reading, refuse_large, some
from mmap_st.errors import CountsError, first_line

#: The least quality that counts: the instrument's own software counts a cell's transcripts from here on.
LEAST_QUALITY = 20.0

_NEEDED = ("x_location", "y_location", "feature_name", "qv")
#: Of versions that say what a transcript is of: a truth value, or words such as ``predesigned_gene``.
_IS_GENE, _CATEGORY = "is_gene", "codeword_category"
#: Bytes of a square and gene while they are counted.
_GROUP_BYTES = 40
#: A panel has up to some ten thousand features.
_MOST_FEATURES = 500_000


@dataclass(frozen=True)
class Transcripts:
    """Transcripts that count, not read yet.

    Attributes
    ----------
    path
        Their table.
    frame
        Columns x, y (float64, micrometres) and gene (its place in the panel) of those that count.
    panel
        The genes.
    """

    path: Path
    frame: pl.LazyFrame
    panel: Panel

    def squares(self, side_um: float) -> tuple[Squares, int]:
        """The squares in which there are any, and the number of transcripts.

        Raises
        ------
        CountsError
            If there are none, or a position is missing.
        """
        found = self._grouped(side_um, [])
        return self._squares(found, side_um), int(found["n"].sum())

    def counts(self, side_um: float) -> tuple[Squares, sparse.csr_array]:
        """The squares, and the (m, g) number of transcripts of each gene in each.

        Raises
        ------
        CountsError
            If there are none, a position is missing, or they are more than memory holds.
        """
        squares, number = self.squares(side_um)
        most = min(number, len(squares) * len(self.panel.genes))
        refuse_large(self.path, most * _GROUP_BYTES, "its counts would take", CountsError, arrays=True)
        found = self._grouped(side_um, ["gene"])
        squares = self._squares(found, side_um)
        counted = sparse.csr_array(
            (found["n"].to_numpy().astype(np.float32), (squares.member_of, found["gene"].to_numpy())),
            (len(squares), len(self.panel.genes)),
        )
        return squares, counted

    def _grouped(self, side_um: float, more: list[str]) -> pl.DataFrame:
        place = [
            (pl.col(axis) / side_um).floor().cast(pl.Int32, strict=False).alias(name)
            for axis, name in (("x", "column"), ("y", "row"))
        ]
        counted = self.frame.select(*place, *more).group_by("column", "row", *more)
        with reading(self.path, "a table of transcripts", CountsError):
            return counted.agg(pl.len().cast(pl.Int64).alias("n")).collect(engine="streaming")

    def _squares(self, found: pl.DataFrame, side_um: float) -> Squares:
        # What is no number, or larger than any, has no square.
        placed = found["column"].is_not_null() & found["row"].is_not_null()
        if not placed.all():
            lost = int(found.filter(~placed)["n"].sum())
            raise CountsError(
                f"{self.path} has {lost:,} transcripts without a position (x_location and y_location in"
                " micrometres); copy it from the run again."
            )
        if found.is_empty():
            raise CountsError(
                f"{self.path} has no transcript of a gene with a quality (qv) of {LEAST_QUALITY:g} or more;"
                " nothing can be counted."
            )
        place = np.column_stack([found["column"].to_numpy(), found["row"].to_numpy()]).astype(np.int64)
        try:
            return squares_of(place, side_um)
        except ValueError as error:
            raise CountsError(f"{self.path}: {first_line(error)}.") from error


def open_transcripts(path: Path, measured: Features | None) -> Transcripts:
    """Look at the features of a table of transcripts.

    Parameters
    ----------
    path
        ``transcripts.parquet``, or a table of text with the same columns, gzipped or not.
    measured
        The genes of the matrix of cells, where there is one.

    Raises
    ------
    CountsError
        If a column is missing, or a transcript has no name or no quality.
    """
    frame = _scan(path)
    with reading(path, "a table of transcripts", CountsError):
        names = frame.collect_schema().names()
    missing = [column for column in _NEEDED if column not in names]
    if missing:
        raise CountsError(
            f"{path} is missing the columns {', '.join(missing)}; it has {some(names, 12) or 'none'}."
        )
    frame = frame.select(
        pl.col("x_location").cast(pl.Float64, strict=False).alias("x"),
        pl.col("y_location").cast(pl.Float64, strict=False).alias("y"),
        # Bytes in early versions, a dictionary in others.
        pl.col("feature_name").cast(pl.String).alias("feature"),
        pl.col("qv").cast(pl.Float64, strict=False).fill_nan(None).alias("qv"),
        _says_gene(names).alias("said"),
    )
    with reading(path, "a table of transcripts", CountsError):
        seen = (
            frame.group_by("feature", "said")
            .agg(pl.len().alias("n"), pl.col("qv").null_count().alias("unknown"))
            .collect(engine="streaming")
        )
    _check_seen(seen, path)
    said: dict[str, bool | None] = {}
    for feature, gene in seen.sort("feature").select("feature", "said").iter_rows():
        said[feature] = gene or said.get(feature, gene)
    panel = panel_of(said, measured)
    if not panel.genes:
        raise CountsError(
            f"{path} has transcripts of controls alone, and none of a gene; nothing is counted."
        )
    # What is not of this list is null.
    code = pl.col("feature").cast(pl.Enum(panel.genes), strict=False).to_physical().alias("gene")
    counted = frame.filter(pl.col("qv") >= LEAST_QUALITY).select("x", "y", code)
    return Transcripts(path, counted.filter(pl.col("gene").is_not_null()), panel)


def _scan(path: Path) -> pl.LazyFrame:
    if path.is_dir():  # polars would read whatever tables are in it
        raise CountsError(f"{path} is a folder, and not a table of transcripts; copy it from the run again.")
    with reading(path, "a table of transcripts", CountsError):
        if path.suffix.lower() == ".parquet":
            return pl.scan_parquet(path, glob=False)
        separator = read_header(path, CountsError).separator
        return pl.scan_csv(path, separator=separator, infer_schema=False, glob=False)


def _says_gene(names: list[str]) -> pl.Expr:
    """Whether each transcript is of a gene; null where the table does not say."""
    if _IS_GENE in names:
        return pl.col(_IS_GENE).cast(pl.String).str.to_lowercase().is_in(["true", "1"])
    if _CATEGORY in names:
        return pl.col(_CATEGORY).cast(pl.String).str.ends_with("gene")
    return pl.lit(None, pl.Boolean)


def _check_seen(seen: pl.DataFrame, path: Path) -> None:
    if seen.is_empty():
        raise CountsError(f"{path} has no transcripts; copy it from the run again.")
    if len(seen) > _MOST_FEATURES:
        raise CountsError(
            f"{path} names {len(seen):,} features, more than any panel has; feature_name has to hold genes."
        )
    unnamed = int(seen.filter(pl.col("feature").is_null())["n"].sum())
    unknown = int(seen["unknown"].sum())
    for number, column in ((unnamed, "feature_name"), (unknown, "qv")):
        if number:
            raise CountsError(
                f"{path} has {number:,} transcripts without a {column}; copy it from the run again."
            )
