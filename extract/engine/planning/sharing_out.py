"""Sharing a cohort out between jobs: shards of it, and slides that other jobs have claimed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from mmap_st.data import Cohort, CohortSlide
from mmap_st.errors import ImageError, RequestError, printable
from mmap_st.extract.slides import image_files, slide_files
from mmap_st.urls import Url

_FORM = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Shard:
    """One part of a cohort of several, counted from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Read ``i/n``, i from 0 to n - 1.

    Raises
    ------
    RequestError
        If it is not that.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise RequestError(f"--shard {printable(text)}: give i/n, as in 0/8: the first of eight jobs.")
    index, count = int(found[1]), int(found[2])
    if not index < count:
        raise RequestError(
            f"--shard {printable(text)}: shards are counted from 0, so that the last of {count} is"
            f" {max(count - 1, 0)}/{count}."
        )
    return Shard(index, count)


def slides_of_shard(cohort: Cohort, shard: Shard) -> tuple[CohortSlide, ...]:
    """The slides of one shard: each goes to the shard that has the least so far, the largest first.

    What a shard gets depends on the names and the bytes of the cohort's images alone, so that all jobs see
    the same shards. Slides stay in the cohort's order.
    """
    shares = [0] * shard.count
    mine = set()
    sizes = {row.slide: _bytes(row) for row in cohort.slides}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = shares.index(min(shares))
        shares[least] += max(sizes[name], 1)
        if least == shard.index:
            mine.add(name)
    return tuple(row for row in cohort.slides if row.slide in mine)


def _bytes(row: CohortSlide) -> int:
    """Size of a slide's image; 0 where there is none, which its job will say.

    Where a server refuses to tell, no job may go on: its shards would not be those of the others.
    """
    if isinstance(row.image, Url):
        try:
            return image_files(row.image).size
        except ImageError:
            return 0
    try:
        return 0 if row.image is None else sum(os.stat(file).st_size for file in slide_files(row.image))
    except OSError:
        return 0
