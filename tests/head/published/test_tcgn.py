"""TCGN's mechanism: convolution, graph and attention over the tokens of a spot's own window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmap_st.errors import HeadError
from mmap_st.head.interface import parse_settings
from mmap_st.head.networks.network import Sizes, TrainingBlock, reduced_tokens, split_into_blocks, token_axes
from mmap_st.head.published import tcgn
from mmap_st.head.published.tcgn import TCGN, GraphLayer, TcgnNetwork, TcgnSettings, graph_of, nearest_tokens


def with_grids(slide, side: int = 3, width: int = 6, seed: int = 0):
    shape = (*slide.embedding.shape[:2], side * side, width)
    return replace(slide, tokens=np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def network_of(slide, **settings) -> TcgnNetwork:
    torch.manual_seed(0)
    made = TcgnNetwork(Sizes(2, 12, 5, slide.tokens.shape[3]), TcgnSettings(width=16, **settings)).eval()
    torch.nn.init.normal_(made.out.weight)  # untrained, it would give the mean of all
    made.fit_reference(
        [TrainingBlock(part, np.zeros((len(part), 5), np.float32)) for part in split_into_blocks(slide)]
    )
    return made


def output(network: TcgnNetwork, tokens: torch.Tensor) -> torch.Tensor:
    inputs = {"tokens": tokens, "neighbours": nearest_tokens(tokens, 4)}
    with torch.inference_mode():
        return network(inputs, torch.arange(len(tokens)))


def test_where_a_token_lies_counts_by_the_convolution_alone(head_slides) -> None:
    network = network_of(with_grids(head_slides(slides=1)[0]))
    tokens = torch.randn(20, 9, 6)
    elsewhere = tokens[:, torch.tensor([4, 0, 8, 2, 6, 1, 3, 7, 5])]
    assert (output(network, tokens) - output(network, elsewhere)).abs().max() > 1e-3
    for block in network.blocks:
        torch.nn.init.zeros_(block.convolution.weight)
    torch.testing.assert_close(output(network, tokens), output(network, elsewhere))


@pytest.mark.parametrize("kind", ["graph", "attention"])
def test_graph_and_attention_both_take_part(head_slides, kind: str) -> None:
    network = network_of(with_grids(head_slides(slides=1)[0]))
    tokens = torch.randn(20, 9, 6)
    before = output(network, tokens)
    for block in network.blocks:
        of_kind = slice(None, 16) if kind == "attention" else slice(16, None)
        with torch.no_grad():
            block.together.weight[:, of_kind] = 0
    assert (before - output(network, tokens)).abs().max() > 1e-3


def test_the_graph_is_that_of_a_plain_search() -> None:
    tokens = torch.randn(5, 9, 6, generator=torch.Generator().manual_seed(0))
    layer = GraphLayer(6)
    neighbours = nearest_tokens(tokens, 3)
    found = layer(tokens, graph_of(neighbours))
    for spot in range(5):
        for place in range(9):
            apart = ((tokens[spot] - tokens[spot, place]) ** 2).sum(1)
            near = torch.tensor(sorted((p for p in range(9) if p != place), key=lambda p: apart[p])[:3])
            assert neighbours[spot, place].sort().values.equal(near.sort().values)
            both = torch.cat([tokens[spot, place], tokens[spot, near].mean(0)])
            torch.testing.assert_close(found[spot, place], layer.linear(both))


def test_a_spot_is_its_own_finest_window(head_slides, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = with_grids(head_slides(slides=1)[0])
    network = network_of(slide)
    (part,) = split_into_blocks(slide)
    rows = torch.tensor([3, 40, 7])
    with torch.inference_mode():
        all_of_them = network(network.prepare_inputs(part), torch.arange(60))
        monkeypatch.setattr(tcgn, "_SPOTS_AT_ONCE", 2)
        torch.testing.assert_close(network(network.prepare_inputs(part), rows), all_of_them[rows])
        # Coarser magnifications are not looked at.
        coarser = slide.tokens.copy()
        coarser[:, 1] = 0
        (other,) = split_into_blocks(replace(slide, tokens=coarser))
        torch.testing.assert_close(network(network.prepare_inputs(other), rows), all_of_them[rows])


def test_axes_are_the_principal_ones_of_standardised_tokens(head_slides) -> None:
    slides = [with_grids(slide, width=12, seed=seed) for seed, slide in enumerate(head_slides(slides=2))]
    for slide in slides:
        slide.tokens[..., 0] = 3.0 * slide.tokens[..., 1] + 7.0  # twice the same, once standardised
    parts = [part for slide in slides for part in split_into_blocks(slide)]
    axes = token_axes(parts, 4)
    first = np.abs(axes[:, 0]) / np.abs(axes[:, 0]).max()
    np.testing.assert_allclose(first[:2], 1.0, atol=1e-3)
    assert (first[2:] < 0.3).all()
    finest = slides[0].tokens[:, 0]
    standardised = (finest - finest.mean(0)) / finest.std(0)
    np.testing.assert_allclose(reduced_tokens(parts[0], axes), standardised @ axes, atol=1e-2)


def test_a_slide_of_few_tokens_and_a_grid_of_one_will_do(head_slides) -> None:
    (slide,) = head_slides(slides=1, spots=3)
    slide = with_grids(slide, side=1, width=8)
    network = network_of(slide)
    assert (network.stored_reference("axes")[:, 3:] == 0).all()
    (part,) = split_into_blocks(slide)
    with torch.inference_mode():
        assert torch.isfinite(network(network.prepare_inputs(part), torch.arange(3))).all()


@pytest.mark.parametrize("pair", ["components=0", "layers=0", "neighbours=0", "heads=5"])
def test_settings_are_checked(pair: str) -> None:
    with pytest.raises(HeadError, match=pair.split("=")[0]):
        parse_settings(TCGN, [pair])
