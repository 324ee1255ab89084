"""Where a place of a Xenium section lies in its H&E.

The matrix that Xenium Explorer exports maps pixels of the H&E to pixels of the morphology image; positions of
transcripts and cells are pixels of that image times its micrometres per pixel. It may turn, mirror and scale.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.tables import reading
from mmap_st.errors import SpotsError

#: A text of nine numbers is never longer.
_MOST_BYTES = 1 << 16
#: Micrometres per pixel that an H&E may have.
_LEAST_MPP, _MOST_MPP = 0.01, 100.0
#: Of one direction over the other; more is said. An alignment by turning and scaling has none.
_LARGEST_STRETCH = 1.02
#: A matrix that flattens the image more cannot be inverted.
_FLAT = 1e3


@dataclass(frozen=True)
class Alignment:
    """From micrometres of the section to pixels of the H&E.

    Attributes
    ----------
    matrix
        (3, 3) float64, from pixels of the H&E to pixels of the morphology image.
    pixel_um
        Micrometres per pixel of the morphology image.
    """

    matrix: NDArray[np.float64]
    pixel_um: float

    @property
    def stretches(self) -> tuple[float, float]:
        """Pixels of the morphology image per pixel of the H&E, in the directions of most and of least."""
        long, short = np.linalg.svd(self.matrix[:2, :2], compute_uv=False)
        return float(long), float(short)

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of the H&E."""
        return self.pixel_um * float(np.sqrt(np.prod(self.stretches)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd of it: a stretch, which no turning, mirroring or scaling makes."""
        long, short = self.stretches
        if long <= _LARGEST_STRETCH * short:
            return ()
        return (
            f"the alignment stretches its H&E {long / short - 1:.0%} more in one direction than in another;"
            " check the points that it was made from",
        )

    def pixels(self, xy_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 2) pixels of the H&E of (n, 2) micrometres."""
        shift = xy_um / self.pixel_um - self.matrix[:2, 2]
        return np.asarray(np.linalg.solve(self.matrix[:2, :2], shift.T).T, np.float64)

    def um(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 2) micrometres of (n, 2) pixels of the H&E: the inverse of `pixels`."""
        found: NDArray[np.float64] = (pixels @ self.matrix[:2, :2].T + self.matrix[:2, 2]) * self.pixel_um
        return found


def read_alignment(path: Path, pixel_um: float) -> Alignment:
    """Read the matrix of an H&E: three rows of three numbers.

    Raises
    ------
    SpotsError
        If it is not that, or no image can be aligned by it.
    """
    with reading(path, "the matrix of an alignment", SpotsError):
        size = path.stat().st_size
        text = path.read_text("utf-8-sig") if size <= _MOST_BYTES else ""
    rows = [_cells(line) for line in text.splitlines() if line.strip()]
    shape = f"{len(rows)} rows of {' or '.join(sorted({str(len(row)) for row in rows})) or 'no'} cells"
    if size > _MOST_BYTES:
        shape = f"{size:,} bytes"
    if len(rows) != 3 or {len(row) for row in rows} != {3}:
        raise SpotsError(f"{path} has {shape}; the matrix of an alignment has 3 rows of 3 numbers.")
    try:
        matrix = np.array([[float(cell) for cell in row] for row in rows])
    except ValueError as error:
        raise SpotsError(f"{path} has a cell that is not a number; export the alignment again.") from error
    if not np.isfinite(matrix).all() or not np.allclose(matrix[2], (0, 0, 1)):
        raise SpotsError(
            f"{path} is no alignment: its last row is {', '.join(rows[2])}, which has to be 0, 0, 1, and"
            " all numbers have to be finite; export it again."
        )
    return _checked(Alignment(matrix, pixel_um), path)


def _checked(alignment: Alignment, path: Path) -> Alignment:
    long, short = alignment.stretches
    if not long < _FLAT * short:
        raise SpotsError(f"{path} maps the whole image onto a line or a point; export the alignment again.")
    if not _LEAST_MPP <= alignment.mpp <= _MOST_MPP:
        raise SpotsError(
            f"{path} makes the H&E one of {alignment.mpp:.3g} um/px, which none is; export the matrix that"
            " maps pixels of the H&E to pixels of the morphology image."
        )
    return alignment


def _cells(line: str) -> list[str]:
    """The cells of a line; with semicolons, commas are decimal."""
    if ";" in line:
        return [cell.strip().replace(",", ".") for cell in line.split(";")]
    return re.split(r"\s*[,\t]\s*|\s+", line.strip())
