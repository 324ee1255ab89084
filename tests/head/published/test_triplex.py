"""TRIPLEX's mechanism: three branches, each of which counts, and a loss that teaches them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mmap_st.errors import HeadError
from mmap_st.head.interface import parse_settings
from mmap_st.head.networks.network import Sizes, split_into_blocks
from mmap_st.head.published.triplex import (
    TRIPLEX,
    Predictions,
    TriplexNetwork,
    TriplexSettings,
    distilled,
)

SPOT = 30  # of 7 columns: x = 2, y = 4


@pytest.fixture
def slide(head_slides):
    (made,) = head_slides(slides=1, spots=63)
    x, y = np.meshgrid(np.arange(7), np.arange(9))
    return replace(made, xy=np.stack([x.ravel(), y.ravel()], axis=1) * 200.0)


def untrained(**changes) -> TriplexNetwork:
    torch.manual_seed(0)
    network = TriplexNetwork(Sizes(2, 12, 5), TriplexSettings(width=16, heads=2, **changes))
    for out in network.out:
        nn.init.normal_(out.weight)
    return network.eval()


def inputs_of(network: TriplexNetwork, slide):
    (part,) = split_into_blocks(slide)
    return network.prepare_inputs(part)


def predicted(network: TriplexNetwork, inputs, spot: int = SPOT) -> Predictions:
    with torch.inference_mode():
        return Predictions(*(p[0].numpy() for p in network.predictions(inputs, torch.tensor([spot]))))


def changed_by(network: TriplexNetwork, slide, spot: int) -> set[str]:
    """Which predictions of `SPOT` depend on the embedding of a spot."""
    inputs = inputs_of(network, slide)
    other = {**inputs, "embedding": inputs["embedding"].clone()}
    other["embedding"][spot] += 1.0
    before, after = predicted(network, inputs)._asdict(), predicted(network, other)._asdict()
    return {name for name in before if np.abs(before[name] - after[name]).max() > 1e-5}


def test_each_branch_sees_as_far_as_it_should(slide) -> None:
    network = untrained()
    own, near, far = SPOT, SPOT + 2 * 7 + 2, 6
    assert changed_by(network, slide, own) == {"fused", "target", "neighbour", "whole"}
    assert changed_by(network, slide, near) == {"fused", "neighbour", "whole"}
    assert changed_by(network, slide, far) == {"fused", "whole"}


def test_the_fused_prediction_depends_on_each_branch(slide) -> None:
    network = untrained()
    inputs = inputs_of(network, slide)
    fused = predicted(network, inputs).fused
    for branch in (network.target, network.neighbour, network.whole):
        hook = branch.register_forward_hook(lambda module, given, tokens: tokens.flip(-1))
        assert np.abs(predicted(network, inputs).fused - fused).max() > 1e-4
        hook.remove()
    np.testing.assert_array_equal(predicted(network, inputs).fused, fused)


def test_each_magnification_is_a_token(slide) -> None:
    network = untrained()
    inputs = inputs_of(network, slide)
    there = predicted(network, inputs)
    for magnification in range(2):
        other = {**inputs, "embedding": inputs["embedding"].clone()}
        other["embedding"][SPOT, magnification] += 1.0
        assert np.abs(predicted(network, other).target - there.target).max() > 1e-4


def test_neighbours_that_are_missing_are_hidden(slide) -> None:
    network = untrained()
    inputs = inputs_of(network, slide)
    corner = 0
    missing = ~inputs["known"][corner]
    assert 0 < int(missing.sum()) < 24
    other = {**inputs, "neighbours": inputs["neighbours"].clone()}
    other["neighbours"][corner, missing] = 62
    for one, two in zip(predicted(network, inputs, corner), predicted(network, other, corner), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_slide_of_one_spot_is_predicted(head_slides) -> None:
    (slide,) = head_slides(slides=1, spots=63)
    one = slide.rows(np.arange(63) == 3)
    network = untrained()
    assert np.isfinite(predicted(network, inputs_of(network, one), 0).fused).all()


def test_the_global_branch_knows_places_and_not_their_unit(slide) -> None:
    network = untrained()
    there = predicted(network, inputs_of(network, slide)).whole
    scaled = replace(slide, xy=slide.xy * 3.7 + 1000.0)
    np.testing.assert_allclose(predicted(network, inputs_of(network, scaled)).whole, there, atol=1e-5)
    order = np.random.default_rng(0).permutation(63)
    elsewhere = replace(slide, xy=slide.xy[order])
    assert np.abs(predicted(network, inputs_of(network, elsewhere)).whole - there).max() > 1e-3
    nn.init.zeros_(network.whole.place.weight)
    one, two = (predicted(network, inputs_of(network, s)).whole for s in (slide, elsewhere))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_the_neighbour_branch_knows_on_which_side_a_neighbour_lies(slide) -> None:
    network = untrained()
    there = predicted(network, inputs_of(network, slide)).neighbour
    mirrored = replace(slide, xy=slide.xy * [-1.0, 1.0])  # the same neighbours
    assert np.abs(predicted(network, inputs_of(network, mirrored)).neighbour - there).max() > 1e-3


def test_it_depends_on_no_order_of_the_spots(slide) -> None:
    network = untrained()
    order = np.random.default_rng(0).permutation(63)
    mixed = replace(slide, embedding=slide.embedding[order], xy=slide.xy[order])
    there = predicted(network, inputs_of(network, slide)).fused
    again = predicted(network, inputs_of(network, mixed), int(np.flatnonzero(order == SPOT)[0])).fused
    np.testing.assert_allclose(there, again, atol=1e-5)


def test_the_loss_is_that_by_hand() -> None:
    target = torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])
    fused = torch.tensor([[1.0, 1.0], [5.0, 0.0]], requires_grad=True)
    zero, two, right = torch.zeros(2, 2), torch.full((2, 2), 2.0), torch.tensor([[1.0, 2.0], [9.0, 0.0]])
    own = (5 / 3, 5 / 3, 0.0)  # over the 3 entries that are defined
    apart = (27 / 4, 15 / 4, 17 / 4)  # from the fused prediction, over all 4
    loss = distilled(Predictions(fused, zero, two, right), target, 0.3)
    expected = 1 / 3 + sum(0.7 * a + 0.3 * b for a, b in zip(own, apart, strict=True))
    assert loss.item() == pytest.approx(expected)
    loss.backward()  # only its own error teaches the fused prediction
    torch.testing.assert_close(fused.grad, torch.tensor([[0.0, -2 / 3], [0.0, 0.0]]))


def test_the_network_learns_from_that_loss(slide) -> None:
    network = untrained(distillation=0.6)
    inputs, rows = inputs_of(network, slide), torch.arange(10)
    target = torch.zeros(10, 5)
    expected = distilled(network.predictions(inputs, rows), target, 0.6)
    torch.testing.assert_close(network.loss(inputs, rows, target), expected)


@pytest.mark.parametrize("pair", ["distillation=1.5", "neighbours=0", "neighbour_layers=0", "heads=3"])
def test_settings_are_checked(pair: str) -> None:
    with pytest.raises(HeadError, match=pair.split("=")[0]):
        parse_settings(TRIPLEX, [pair])
