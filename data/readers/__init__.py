"""Readers of public layouts: each finds slides in a folder and reads their spots and counts."""

from mmap_st.data.readers.registry import (
    READERS,
    Reader,
    open_cohort,
    read_counts,
    read_spots,
)

__all__ = ["READERS", "Reader", "open_cohort", "read_counts", "read_spots"]
