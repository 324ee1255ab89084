"""Open a cohort, whatever form it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmap_st.data import Cohort
from mmap_st.data.readers import CohortSource, as_cohort, open_cohort
from mmap_st.errors import RequestError
from mmap_st.workflows.arguments import values_of


def read_cohort(
    source: CohortSource, *, image: str | Path | None = None, values: str | None = None
) -> Cohort:
    """Read a cohort: a table of slides, one row per slide.

    Parameters
    ----------
    source
        A cohort file (.csv or .parquet), ``"reader:path"`` for a folder in a public layout such as
        ``"her2st:her2st"`` or ``"visium:outs"``, or a polars or pandas table with the columns of a cohort
        file: ``slide``, and where they are known ``patient``, ``image``, ``spots``, ``counts``, ``reader``
        and ``mpp``.
        Relative paths are relative to the cohort file; of a table, to the working directory.
    image
        The image that the spots were placed on, where it is somewhere else; or a folder of images that are
        named as the slides are.
    values
        What count tables hold: ``counts``, or ``lognorm`` for values that are log-normalised on purpose.

    Returns
    -------
    The slides in the order of the table; ``cohort["C2"]`` is one row.

    Raises
    ------
    CohortError
        If there is no such file, reader or folder, it holds no slides, or a row cannot be used.

    Examples
    --------
    >>> cohort = mm.read_cohort(f"her2st:{her2st}")
    >>> cohort.names
    ('A1', 'B1', 'C1')
    >>> cohort["A1"].patient
    'A'
    """
    values = values_of(values)
    if isinstance(source, str | Path):
        return open_cohort(str(source), image=None if image is None else Path(image), values=values)
    if image is not None:
        raise RequestError("image is for a cohort that is read from a path; this one has its own images.")
    cohort = as_cohort(source)
    if values is None:
        return cohort
    return replace(cohort, slides=tuple(replace(s, values=values) if s.counts else s for s in cohort.slides))
