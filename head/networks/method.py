"""How a network is made a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmap_st.head.base import HeadMethod, Shape, Tensors, Validation
from mmap_st.head.networks.fit import fit_network
from mmap_st.head.networks.head import NetworkHead, load_network
from mmap_st.head.networks.network import NetworkSettings, PartNetwork, Sizes
from mmap_st.head.slides import HeadSlide


def network_method(
    name: str,
    settings_type: type[NetworkSettings],
    make: Callable[[Sizes, Any], PartNetwork],
    **others: Any,
) -> HeadMethod:
    """A head of a network.

    Parameters
    ----------
    name, settings_type
        See `mmap_st.head.base.HeadMethod`.
    make
        The network's class, or what makes one of (sizes, settings).
    others
        Further attributes of the method.
    """

    def fit(
        train: Sequence[HeadSlide],
        validation: Validation,
        settings: Any,
        seed: int,
        tell: Callable[[str], None],
    ) -> NetworkHead:
        return fit_network(name, make, train, validation, settings, seed, tell)

    def load(tensors: Tensors, settings: Any, shape: Shape) -> NetworkHead:
        return load_network(make, tensors, settings, shape)

    return HeadMethod(name, settings_type, fit, load, **others)
