"""Hist2ST's mechanism: a transformer with places, a graph of neighbours, a likelihood of counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import nbinom
from torch import nn

from mmap_st.data.targets import Targets
from mmap_st.errors import HeadError
from mmap_st.head.interface import parse_settings, plan_validation
from mmap_st.head.networks.network import Sizes, TrainingBlock, split_into_blocks
from mmap_st.head.published.hist2st import (
    HIST2ST,
    CountsOutput,
    Hist2stNetwork,
    Hist2stSettings,
    zinb_log_likelihood,
)


def silent(text: str) -> None:
    pass


@pytest.fixture
def slide(head_slides):
    (made,) = head_slides(slides=1, spots=30)
    x, y = np.meshgrid(np.arange(6), np.arange(5))
    return replace(made, xy=np.stack([x.ravel(), y.ravel()], axis=1) * 200.0)


def untrained(**changes) -> Hist2stNetwork:
    torch.manual_seed(0)
    network = Hist2stNetwork(Sizes(2, 12, 5), Hist2stSettings(width=16, heads=2, **changes))
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight)  # output layers start at 0
    return network.eval()


def output(network: Hist2stNetwork, slide) -> np.ndarray:
    (part,) = split_into_blocks(slide)
    with torch.inference_mode():
        return network(network.prepare_inputs(part), torch.arange(len(part))).numpy()


def swapped(slide, one: int, other: int):
    """The slide with two embeddings exchanged: its mean and spread stay."""
    embedding = slide.embedding.copy()
    embedding[[one, other]] = embedding[[other, one]]
    return replace(slide, embedding=embedding)


def test_without_the_transformer_a_spot_sees_as_far_as_the_graph_has_layers(slide) -> None:
    for layers, seen in ((1, {8, 13, 14, 15, 20}), (2, {2, 7, 8, 9, 12, 13, 14, 15, 16, 19, 20, 21, 26})):
        network = untrained(graph_layers=layers)
        network.transformer = nn.Identity()
        there = output(network, slide)
        lonely = 5  # a corner, which spot 14 does not see
        changing = {
            spot
            for spot in range(30)
            if spot != lonely
            and np.abs(output(network, swapped(slide, spot, lonely)) - there)[14].max() > 1e-5
        }
        assert changing == seen


def test_the_transformer_sees_the_whole_slide(slide) -> None:
    network = untrained()
    assert np.abs(output(network, slide) - output(network, swapped(slide, 0, 29)))[14].max() > 1e-5


def test_the_layers_of_the_graph_are_read_in_turn(slide) -> None:
    network = untrained(graph_layers=2)
    there = output(network, slide)
    with torch.no_grad():
        network.over_layers.weight_hh_l0.zero_()  # the second layer is then read without the first
    assert np.abs(output(network, slide) - there).max() > 1e-4


def test_places_count_and_their_unit_does_not(slide) -> None:
    network = untrained()
    there = output(network, slide)
    mirrored = replace(slide, xy=slide.xy * [-1.0, 1.0])  # the same neighbours
    assert np.abs(there - output(network, mirrored)).max() > 1e-3
    scaled = replace(slide, xy=slide.xy * 3.7 + 1000.0)
    np.testing.assert_allclose(there, output(network, scaled), atol=1e-5)


def test_a_spot_without_neighbours_is_predicted(slide) -> None:
    lonely = replace(slide, xy=np.where(np.arange(30)[:, None] == 29, 9000.0, slide.xy))
    assert np.isfinite(output(untrained(), lonely)).all()


def test_the_likelihood_is_that_of_scipy_with_more_zeros() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, 400)
    mean, dispersion = rng.lognormal(0, 1.5, (2, 400))
    logit = rng.normal(0, 3, 400)
    share = 1 / (1 + np.exp(-logit))
    probability = (1 - share) * nbinom.pmf(counts, dispersion, dispersion / (dispersion + mean))
    expected = np.log(np.where(counts == 0, share, 0) + probability)
    found = zinb_log_likelihood(
        *(torch.from_numpy(v) for v in (counts.astype(float), mean, dispersion, logit))
    )
    assert (counts == 0).any()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8)


def test_undefined_counts_take_no_part() -> None:
    torch.manual_seed(0)
    counts_output = CountsOutput(4, 3)
    nn.init.normal_(counts_output.log_mean.weight)
    state, counts = torch.randn(5, 4), torch.arange(15.0).reshape(5, 3)
    whole = counts_output.loss(state[:3], counts[:3])
    counts[3:] = torch.nan
    lacking = counts_output.loss(state, counts)
    torch.testing.assert_close(lacking, whole)
    lacking.backward()
    assert all(torch.isfinite(p.grad).all() for p in counts_output.parameters())


def positive(slide):
    return replace(slide, target=Targets.of_dense(np.maximum(slide.targets.dense(), 0.0)))


def test_the_loss_of_counts_is_added_with_its_weight(slide) -> None:
    network = untrained(zinb=0.25)
    (part,) = split_into_blocks(positive(slide))
    target = part.slide.targets.dense() - part.slide.targets.dense().mean(axis=0)
    inputs = {**network.prepare_inputs(part), **network.prepare_targets(TrainingBlock(part, target))}
    torch.testing.assert_close(inputs["counts"], torch.from_numpy(np.expm1(part.slide.targets.dense())))
    rows = torch.tensor([3, 8])
    added = 0.25 * network.counts.loss(network.state(inputs, rows), inputs["counts"][rows])
    squared = (network(inputs, rows) - torch.from_numpy(target)[rows]).square().mean()
    torch.testing.assert_close(network.loss(inputs, rows, torch.from_numpy(target)[rows]), squared + added)


def test_the_means_of_counts_start_from_those_of_training(slide) -> None:
    network = Hist2stNetwork(Sizes(2, 12, 5), Hist2stSettings(width=16, heads=2, zinb=1.0))
    lacking = positive(slide).targets.dense()
    lacking[4], lacking[:, 2] = np.nan, np.nan
    (part,) = split_into_blocks(replace(slide, target=Targets.of_dense(lacking)))
    network.fit_reference([TrainingBlock(part, lacking)])
    start = network.counts.log_mean.bias.detach().exp().numpy()
    mean = np.expm1(np.delete(lacking, 4, axis=0)).mean(axis=0)
    np.testing.assert_allclose(np.delete(start, 2), np.delete(mean, 2), rtol=1e-5)
    assert start[2] < 1e-4  # a gene that no slide has


def test_counts_change_what_is_learned(head_slides) -> None:
    *train, test = [positive(slide) for slide in head_slides(slides=4)]
    without, with_counts = (
        HIST2ST.fit(
            train,
            plan_validation(train, ()),
            parse_settings(HIST2ST, ["width=16", "epochs=2", f"zinb={weight}"]),
            0,
            silent,
        ).predict(test)
        for weight in (0, 1)
    )
    assert np.isfinite(with_counts).all()
    assert np.abs(without - with_counts).max() > 1e-3


@pytest.mark.parametrize(("pairs", "said"), [(["rank=3"], "axes"), ([], "0 or more")])
def test_counts_that_are_none_are_refused(head_slides, pairs: list[str], said: str) -> None:
    train = head_slides(slides=3)
    below = [replace(s, target=Targets.of_dense(s.targets.dense() - 3.0)) for s in train]
    settings = parse_settings(HIST2ST, ["zinb=0.25", *pairs])
    with pytest.raises(HeadError, match=said):
        HIST2ST.fit(below, plan_validation(below, ()), settings, 0, silent)


@pytest.mark.parametrize("pair", ["zinb=-1", "graph_layers=0", "neighbours=0", "heads=3"])
def test_settings_are_checked(pair: str) -> None:
    with pytest.raises(HeadError, match=pair.split("=")[0]):
        parse_settings(HIST2ST, [pair])
