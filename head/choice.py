"""The one rule by which settings are chosen on validation slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

Row = TypeVar("Row", bound=Mapping[str, float])

_PCC_TOLERANCE = 0.02


def best_of(rows: Sequence[Row]) -> Row:
    """Among those whose per-slide PCC is within 2% of the best, that of least squared error.

    PCC alone does not see the scale of a prediction: it stays level as a penalty shrinks all predictions
    towards the mean, and would choose the strongest.

    Parameters
    ----------
    rows
        With ``validation_pcc`` and ``validation_mse``; at least one. Of equals, the first is taken.
    """
    best = max(row["validation_pcc"] for row in rows)
    good = [row for row in rows if row["validation_pcc"] >= best - _PCC_TOLERANCE * abs(best)]
    return min(good, key=lambda row: row["validation_mse"])
