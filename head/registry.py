"""The heads that can be named."""

from __future__ import annotations

from mmap_st.errors import HeadError, did_you_mean
from mmap_st.head.base import HeadMethod
from mmap_st.head.hest_ridge import HEST_RIDGE
from mmap_st.head.mean import MEAN
from mmap_st.head.mmap import MMAP
from mmap_st.head.published.histogene import HISTOGENE
from mmap_st.head.published.mlp import MLP
from mmap_st.head.published.st_net import ST_NET
from mmap_st.head.published.tcgn import TCGN
from mmap_st.head.ridge import RIDGE

HEADS = {method.name: method for method in (MMAP, RIDGE, HEST_RIDGE, MEAN, HISTOGENE, ST_NET, MLP, TCGN)}


def head_method(name: str) -> HeadMethod:
    """The head of this name.

    Raises
    ------
    HeadError
        If there is none; it names those that are near.
    """
    if name not in HEADS:
        raise HeadError(
            f"There is no head {name!r}{did_you_mean(name, HEADS)}; the heads are {', '.join(HEADS)}."
        )
    return HEADS[name]
