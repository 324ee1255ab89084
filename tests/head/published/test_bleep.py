"""BLEEP's mechanism: a space of images and expression, and the mean of what is near in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmap_st.errors import HeadError
from mmap_st.head.interface import parse_settings, plan_validation
from mmap_st.head.linear.mean import training_mean
from mmap_st.head.networks.network import Sizes, TrainingBlock, split_into_blocks
from mmap_st.head.published.bleep import BLEEP, BleepNetwork, BleepSettings, contrastive_loss


def silent(text: str) -> None:
    pass


def test_a_prediction_is_the_mean_of_training_spots(head_slides) -> None:
    *train, test = head_slides()
    measured = np.concatenate([slide.targets.dense() for slide in train])

    def predicted(neighbours: int) -> np.ndarray:
        settings = BleepSettings(epochs=2, width=16, neighbours=neighbours)
        return BLEEP.fit(train, plan_validation(train, ()), settings, 0, silent).predict(test)

    one = predicted(1)
    distance = np.abs(one[:, None] - measured).max(axis=2)
    assert distance.min(axis=1).max() < 1e-5  # each is what one training spot expresses
    assert len(np.unique(distance.argmin(axis=1))) > 5
    many = predicted(10)
    assert (many >= measured.min(axis=0) - 1e-5).all()
    assert (many <= measured.max(axis=0) + 1e-5).all()
    np.testing.assert_allclose(predicted(180), np.tile(training_mean(train), (60, 1)), atol=1e-5)


def test_the_loss_by_hand() -> None:
    rng, temperature = np.random.default_rng(0), 0.7
    image, expression = rng.normal(size=(2, 6, 3))
    target, total = np.zeros((6, 6)), 0.0
    for i in range(6):
        for j in range(6):
            target[i, j] = np.exp((image[i] @ image[j] + expression[i] @ expression[j]) / 2 * temperature)
        target[i] /= target[i].sum()
    for i in range(6):
        to_images = np.array([expression[i] @ image[j] for j in range(6)]) / temperature
        to_expressions = np.array([image[i] @ expression[j] for j in range(6)]) / temperature
        total -= target[i] @ (to_images - np.log(np.exp(to_images).sum())) / 2
        total -= target[:, i] @ (to_expressions - np.log(np.exp(to_expressions).sum())) / 2
    found = contrastive_loss(torch.from_numpy(image), torch.from_numpy(expression), temperature)
    assert float(found) == pytest.approx(total / 6)


def agreeing(slides, level: float) -> tuple[BleepNetwork, list[TrainingBlock]]:
    """A network of one projection for both, and spots that express what they show, on some level a slide."""
    settings = BleepSettings(width=16, neighbours=1)
    torch.manual_seed(0)
    network = BleepNetwork(Sizes(2, 12, 24), settings).eval()
    network.image.load_state_dict(network.expression.state_dict())
    parts = [split_into_blocks(slide)[0] for slide in slides]
    train = [TrainingBlock(p, p.embedding.reshape(-1, 24) + level * i) for i, p in enumerate(parts)]
    network.fit_reference(train)
    return network, train


@pytest.mark.parametrize("level", [0.0, 5.0])
def test_the_matching_spot_is_found_whatever_the_level_of_its_slide(head_slides, level: float) -> None:
    network, train = agreeing(head_slides(slides=3), level)
    for training in train:
        with torch.inference_mode():
            found = network(network.prepare_inputs(training.block), torch.arange(60))
        np.testing.assert_allclose(found.numpy(), training.target, atol=1e-5)


def test_the_loss_is_least_where_image_and_expression_agree(head_slides) -> None:
    network, (training, *_) = agreeing(head_slides(slides=2), 0.0)
    inputs, target = network.prepare_inputs(training.block), torch.from_numpy(training.target)
    centred, rows = network.prepare_targets(training)["centred"], torch.arange(60)
    with torch.inference_mode():
        agree, mixed = (
            float(network.loss({**inputs, "centred": centred[order]}, rows, target[order]))
            for order in (rows, rows.roll(1))
        )
    assert agree < 0.1 * mixed


@pytest.mark.parametrize("pair", ["neighbours=0", "width=0", "temperature=0"])
def test_settings_are_checked(pair: str) -> None:
    with pytest.raises(HeadError, match=pair.split("=")[0]):
        parse_settings(BLEEP, [pair])
