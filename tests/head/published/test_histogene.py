"""HisToGene's mechanism: every spot sees every other of its slide, and where each lies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from mmap_st.head.networks.network import Sizes, split_into_blocks
from mmap_st.head.published.histogene import HistogeneNetwork, HistogeneSettings


def output(slide) -> np.ndarray:
    torch.manual_seed(0)
    network = HistogeneNetwork(Sizes(2, 12, 5), HistogeneSettings(width=16, heads=2)).eval()
    torch.nn.init.normal_(network.out.weight)  # the output layer starts at 0
    (part,) = split_into_blocks(slide)
    with torch.inference_mode():
        return network(network.prepare_inputs(part), torch.arange(len(part))).numpy()


def on_a_grid(slide, order):
    x, y = np.meshgrid(np.arange(6), np.arange(5))
    return replace(slide, xy=np.stack([x.ravel(), y.ravel()], axis=1)[order] * 200.0)


def test_the_place_of_a_spot_counts_and_the_unit_does_not(head_slides) -> None:
    (slide,) = head_slides(slides=1, spots=30)
    there = on_a_grid(slide, np.arange(30))
    elsewhere = on_a_grid(slide, np.roll(np.arange(30), 7))
    assert np.abs(output(there) - output(elsewhere)).max() > 1e-2
    shifted_and_scaled = replace(there, xy=there.xy * 3.7 + 1000.0)
    np.testing.assert_allclose(output(there), output(shifted_and_scaled), atol=1e-6)


def test_a_spot_sees_the_others(head_slides) -> None:
    (slide,) = head_slides(slides=1, spots=30)
    there = on_a_grid(slide, np.arange(30))
    embedding = there.embedding.copy()
    embedding[[3, 20]] = embedding[[20, 3]]  # the slide's mean and spread stay
    changed = replace(there, embedding=embedding)
    assert np.abs(output(there) - output(changed))[10].max() > 1e-4


def test_it_depends_on_no_order_of_the_spots(head_slides) -> None:
    (slide,) = head_slides(slides=1, spots=30)
    there = on_a_grid(slide, np.arange(30))
    order = np.random.default_rng(0).permutation(30)
    mixed = replace(there, embedding=there.embedding[order], xy=there.xy[order])
    np.testing.assert_allclose(output(there)[order], output(mixed), atol=1e-5)
