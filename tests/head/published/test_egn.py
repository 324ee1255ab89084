"""EGN's mechanism: training spots that look like a spot, but are not of its patient, guide it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmap_st.errors import HeadError
from mmap_st.head.interface import parse_settings, plan_validation
from mmap_st.head.networks.network import Sizes, SpotBlock, TrainingBlock, split_into_blocks
from mmap_st.head.published.egn import EGN, EgnNetwork, EgnSettings


def silent(text: str) -> None:
    pass


def training(slide, rows=None) -> TrainingBlock:
    part = SpotBlock(slide, np.arange(len(slide)) if rows is None else rows)
    return TrainingBlock(part, slide.targets.dense(part.rows) - 2.0)


def referring_to(train, exemplars: int = 4) -> EgnNetwork:
    torch.manual_seed(0)
    network = EgnNetwork(Sizes(2, 12, 5), EgnSettings(width=16, exemplars=exemplars)).eval()
    network.fit_reference(train)
    torch.nn.init.normal_(network.out[1].weight)  # the output layer starts at 0
    return network


def output(network: EgnNetwork, part: SpotBlock) -> np.ndarray:
    with torch.inference_mode():
        return network(network.prepare_inputs(part), torch.arange(len(part))).numpy()


def test_what_exemplars_express_counts_and_what_others_do_does_not(head_slides) -> None:
    *train, test = head_slides()
    network = referring_to([training(slide) for slide in train])
    (part,) = split_into_blocks(test)
    before, exemplars = output(network, part), network.prepare_inputs(part)["exemplars"].numpy()
    changed = exemplars[0, 0]
    network.stored_reference("spots_expression")[changed] += 3.0
    difference = np.abs(output(network, part) - before).max(axis=1)
    guided = (exemplars == changed).any(axis=1)
    assert difference[guided].min() > 1e-4
    assert not guided.all()
    assert difference[~guided].max() == 0


def test_exemplars_are_a_set(head_slides) -> None:
    *train, test = head_slides()
    network = referring_to([training(slide) for slide in train])
    inputs = network.prepare_inputs(split_into_blocks(test)[0])
    turned = {**inputs, "exemplars": inputs["exemplars"].flip(1)}
    with torch.inference_mode():
        one, two = (network(given, torch.arange(20)) for given in (inputs, turned))
    torch.testing.assert_close(one, two)


def test_no_exemplar_is_of_the_own_slide_or_patient(head_slides) -> None:
    train = head_slides()
    train[1] = replace(train[1], patient="P0")
    network = referring_to([training(slide) for slide in train])
    slide_of = np.repeat(np.arange(4), 60)
    for number, allowed in ((0, {2, 3}), (1, {2, 3}), (2, {0, 1, 3})):
        found = slide_of[network.prepare_inputs(split_into_blocks(train[number])[0])["exemplars"].numpy()]
        assert set(found.ravel()) == allowed


def test_folds_of_one_slide_find_exemplars_but_never_themselves(head_slides) -> None:
    (slide,) = head_slides(slides=1)
    fitted_on, judged = np.arange(40), np.arange(40, 60)
    network = referring_to([training(slide, fitted_on)])
    own = network.prepare_inputs(SpotBlock(slide, fitted_on))["exemplars"].numpy()
    assert own.shape == (40, 4)
    assert not (own == fitted_on[:, None]).any()
    assert network.prepare_inputs(SpotBlock(slide, judged))["exemplars"].shape == (20, 4)
    head = EGN.fit([slide], plan_validation([slide], ()), EgnSettings(epochs=2, width=16), 0, silent)
    assert all(np.isfinite(part.predicted).all() for part in head.held_out())


def test_a_spot_without_any_exemplar_is_predicted_by_what_it_shows(head_slides) -> None:
    (slide,) = head_slides(slides=1)
    network = referring_to([training(slide, np.arange(1))])
    assert np.isfinite(output(network, SpotBlock(slide, np.arange(1)))).all()


@pytest.mark.parametrize("pair", ["exemplars=0", "width=30", "layers=0"])
def test_settings_are_checked(pair: str) -> None:
    with pytest.raises(HeadError, match=pair.split("=")[0]):
        parse_settings(EGN, [pair])
