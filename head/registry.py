"""The heads that can be named."""

from __future__ import annotations

from mmap_st.errors import HeadError, did_you_mean
from mmap_st.head.base import HeadMethod
from mmap_st.head.hest_ridge import HEST_RIDGE
from mmap_st.head.mean import MEAN
from mmap_st.head.mmap import MMAP
from mmap_st.head.published.bleep import BLEEP
from mmap_st.head.published.egn import EGN
from mmap_st.head.published.hist2st import HIST2ST
from mmap_st.head.published.histogene import HISTOGENE
from mmap_st.head.published.knn import KNN
from mmap_st.head.published.mlp import MLP
from mmap_st.head.published.st_net import ST_NET
from mmap_st.head.published.tcgn import TCGN
from mmap_st.head.published.triplex import TRIPLEX
from mmap_st.head.ridge import RIDGE
from mmap_st.head.user import installed_heads, method_from_file

# Baselines first, then published methods by their year.
HEADS = {
    method.name: method
    for method in (
        MMAP,
        RIDGE,
        HEST_RIDGE,
        MEAN,
        KNN,
        ST_NET,
        HISTOGENE,
        HIST2ST,
        EGN,
        BLEEP,
        TCGN,
        MLP,
        TRIPLEX,
    )
}


def head_method(name: str) -> HeadMethod:
    """The head of this name: built in, of an installed package, or ``FILE.py:NAME``.

    Raises
    ------
    HeadError
        If there is none; it names those that are near.
    """
    if name in HEADS:
        return HEADS[name]
    if ".py:" in name:
        return method_from_file(name, HEADS)
    installed = installed_heads(frozenset(HEADS))
    if name in installed.methods:
        return installed.methods[name]
    if name in installed.broken:
        raise HeadError(installed.broken[name])
    known = [*HEADS, *installed.methods]
    raise HeadError(
        f"There is no head {name!r}{did_you_mean(name, known)}; the heads are {', '.join(known)}, and"
        " FILE.py:NAME is your own."
    )
