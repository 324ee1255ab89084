"""Where the spots of a table lie: pixels and places on the array, by names of columns where there are any."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.arrays import hexagonal_positions, is_hexagonal, square_positions
from mmap_st.data.readers.annotated.parts import SpotTable
from mmap_st.data.readers.annotated.sections import section_of
from mmap_st.data.spots import PIXEL_COLUMNS, Spots, some
from mmap_st.errors import SpotsError

if TYPE_CHECKING:
    from pandas import DataFrame

VISIUM_PITCH_UM = 100.0  # centre to centre; spots are 55 um wide
VISIUM = "Visium"

# In a data frame of positions these are pixels too; in `obs` they may be places on the array.
_IN_POSITIONS = (
    ("x", "y"), ("col", "row"), ("column", "row"), ("x_coord", "y_coord"), ("x_coordinate", "y_coordinate"),
    ("x_centroid", "y_centroid"),
)  # fmt: skip
_NUMBERED = re.compile(r"(.*?)(\d+)")
_SHARE_REPEATED = 0.5


def spots_of(table: SpotTable, where: str | None = None) -> Spots:
    """Spots of a table, in its order.

    Parameters
    ----------
    table
        What was read.
    where
        Of several sections the one to use, such as ``batch=A``.

    Raises
    ------
    SpotsError
        If there are no positions, or they belong to several sections.
    """
    section = section_of(table, where)
    rows, obs = section.rows, table.obs.loc[section.rows]
    ids = tuple(str(name) for name in obs.index)
    xy = _pixels(table)[rows]
    array = _array(obs)
    _refuse_several_sections(table.source, array, xy)
    technology, pitch_um, mpp = _technology(section.library)
    if array is not None and is_hexagonal(array):
        technology, pitch_um = technology or VISIUM, pitch_um or VISIUM_PITCH_UM
        array = hexagonal_positions(array)
    elif array is not None:
        array = square_positions(array)
    try:
        return Spots(ids, xy, array, pitch_um, technology=technology, mpp=mpp, notes=section.notes)
    except SpotsError as error:
        raise SpotsError(f"{table.source}: {error}") from error


def _pixels(table: SpotTable) -> NDArray[np.float64]:
    """(rows of obs, 2) x and y in pixels."""
    if table.spatial is None:
        pair = _pair(table.obs, PIXEL_COLUMNS)
        if pair is None:
            raise SpotsError(
                f"{table.source} has no obsm['spatial'], and no columns of obs that are named as pixels, such"
                f" as {' and '.join(PIXEL_COLUMNS[0])}; positions in pixels are needed there."
            )
        return _numbers(table.obs, pair, f"{table.source}: obs")
    frame = _as_frame(table.spatial)
    if frame is not None:
        return _named_pixels(frame, f"{table.source}: obsm['spatial']")
    xy = np.asarray(table.spatial, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise SpotsError(
            f"{table.source}: obsm['spatial'] has the shape {xy.shape}; it should be (spots, 2)."
        )
    _refuse_depth(table.source, xy[:, 2:])
    return xy[:, :2].copy()


def _as_frame(spatial: Any) -> DataFrame | None:
    """Positions with names: a data frame, or an array with fields; else None."""
    if getattr(spatial, "columns", None) is not None:
        frame: DataFrame = spatial
        return frame
    if getattr(getattr(spatial, "dtype", None), "names", None):
        import pandas as pd

        return pd.DataFrame({name: np.asarray(spatial[name]).ravel() for name in spatial.dtype.names})
    return None


def _named_pixels(frame: DataFrame, where: str) -> NDArray[np.float64]:
    pair = _pair(frame, (*PIXEL_COLUMNS, *_IN_POSITIONS)) or _numbered_pair(list(frame.columns))
    if pair is None:
        raise SpotsError(
            f"{where} has the columns {some([str(name) for name in frame.columns])}, of which none is known"
            f" as pixels; name them {' and '.join(PIXEL_COLUMNS[0])}, or x and y."
        )
    depth = [name for name in frame.columns if str(name).lower() == "z"]
    if depth:
        _refuse_depth(where, frame[depth].to_numpy(dtype=np.float64))
    return _numbers(frame, pair, where)


def _pair(frame: DataFrame, pairs: Sequence[tuple[str, str]]) -> tuple[Any, Any] | None:
    """The columns x and y, by the first two names that are both there, in any case."""
    by_lower = {str(name).strip().lower(): name for name in reversed(list(frame.columns))}
    return next(((by_lower[x], by_lower[y]) for x, y in pairs if x in by_lower and y in by_lower), None)


def _numbered_pair(columns: list[Any]) -> tuple[Any, Any] | None:
    """The columns x and y of a frame whose columns are numbered, such as 0, 1 or spatial1, spatial2."""
    matches = [_NUMBERED.fullmatch(str(name)) for name in columns]
    if len(columns) < 2 or not all(matches) or len({match[1] for match in matches if match}) > 1:
        return None
    in_order = sorted(zip([int(match[2]) for match in matches if match], columns, strict=True))
    return in_order[0][1], in_order[1][1]


def _numbers(frame: DataFrame, pair: tuple[Any, Any], where: str) -> NDArray[np.float64]:
    try:
        return np.asarray(frame[list(pair)].to_numpy(dtype=np.float64, na_value=np.nan))
    except (TypeError, ValueError) as error:
        raise SpotsError(
            f"{where}: the columns {pair[0]} and {pair[1]} are not numbers; correct them."
        ) from error


def _refuse_depth(source: str, depth: NDArray[np.float64]) -> None:
    if depth.shape[1] and np.ptp(depth, axis=0).any():
        raise SpotsError(
            f"{source}: positions have {2 + depth.shape[1]} dimensions; write one file per section, with x"
            " and y."
        )


def _refuse_several_sections(source: str, array: NDArray[np.float64] | None, xy: NDArray[np.float64]) -> None:
    """Concatenated sections may have lost every column that names them, but their places repeat."""
    advice = (
        ", as in concatenated sections; choose one by the cohort's column where, such as batch=A, or write"
        " one file per section."
    )
    if array is not None and len(np.unique(array, axis=0)) < len(array):
        raise SpotsError(f"{source} has several spots at the same array_row and array_col{advice}")
    if len(xy) > 1 and np.isfinite(xy).all():
        _, times = np.unique(xy, axis=0, return_counts=True)
        if times[times > 1].sum() > _SHARE_REPEATED * len(xy):
            raise SpotsError(f"{source} has several spots at the same pixels{advice}")


def _technology(library: Mapping[str, object]) -> tuple[str | None, float | None, float | None]:
    """Technology, pitch in um and micrometres per pixel, where Space Ranger's metadata has them."""
    factors, notes = library.get("scalefactors", {}), library.get("metadata", {})
    factors = factors if isinstance(factors, Mapping) else {}
    notes = notes if isinstance(notes, Mapping) else {}
    bin_um = positive(factors.get("bin_size_um"))
    if bin_um is not None:
        return f"Visium HD {bin_um:g} um", bin_um, positive(factors.get("microns_per_pixel"))
    if "Spatial" in str(notes.get("chemistry_description", "")):
        return VISIUM, VISIUM_PITCH_UM, None
    return None, None, None


def positive(value: Any) -> float | None:
    """A finite number greater than zero, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def _array(obs: DataFrame) -> NDArray[np.float64] | None:
    """(n, 2) row and column on the array; None unless the table has both for every spot."""
    if not {"array_row", "array_col"} <= set(obs.columns):
        return None
    try:
        place = obs[["array_row", "array_col"]].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return place if np.isfinite(place).all() else None
