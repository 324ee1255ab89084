"""DeepPT's mechanism: an autoencoder that sees no expression, frozen, and a perceptron from its bottleneck."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmap_st.data.targets import Targets
from mmap_st.errors import HeadError
from mmap_st.head.interface import parse_settings, plan_validation
from mmap_st.head.networks.network import split_into_blocks
from mmap_st.head.published.mlp import MLP, Autoencoder, MlpSettings, train_autoencoder


def silent(text: str) -> None:
    pass


def few_axes(slides, rank: int = 4):
    """The slides with embeddings (n, 2, 12) that lie near a plane of `rank` axes, the same for all."""
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(rank, 24))

    def of(slide):
        flat = rng.normal(size=(len(slide), rank)) @ axes + 0.1 * rng.normal(size=(len(slide), 24))
        return replace(slide, embedding=flat.reshape(-1, 2, 12).astype(np.float32))

    return [of(slide) for slide in slides]


def fitted(slides, **changes):
    settings = MlpSettings(**{"bottleneck": 6, "width": 16, "epochs": 2, **changes})
    return MLP.fit(slides, plan_validation(slides, ()), settings, 0, silent)


def of_autoencoder(head) -> dict[str, np.ndarray]:
    return {key: value for key, value in head.tensors().items() if "autoencoder" in key}


def rebuilding_error(autoencoder: Autoencoder, slide) -> float:
    embedding = torch.from_numpy(split_into_blocks(slide)[0].embedding).flatten(1)
    with torch.no_grad():
        return float(((autoencoder(embedding) - embedding) ** 2).mean())


def test_the_perceptron_sees_no_more_than_the_bottleneck(head_slides) -> None:
    train = head_slides(slides=3)
    head = fitted(train)
    (part,) = split_into_blocks(train[0])
    seen = head.network.prepare_inputs(part)
    assert {name: tuple(values.shape) for name, values in seen.items()} == {"bottleneck": (60, 6)}
    assert of_autoencoder(head)["network.autoencoder.encoder.0.weight"].shape == (6, 24)


def test_the_autoencoder_rebuilds_embeddings_of_slides_that_it_did_not_see(head_slides) -> None:
    *train, test = few_axes(head_slides(slides=4))
    torch.manual_seed(0)
    autoencoder = Autoencoder(24, 8)
    before = rebuilding_error(autoencoder, test)
    train_autoencoder(autoencoder, [part for slide in train for part in split_into_blocks(slide)], epochs=60)
    assert before > 1  # embeddings have a variance of 1
    assert rebuilding_error(autoencoder, test) < 0.3
    # Embeddings without axes in common cannot be told by so few numbers.
    assert rebuilding_error(autoencoder, head_slides(slides=1)[0]) > 0.6


def test_the_autoencoder_is_the_same_whatever_the_expression(head_slides) -> None:
    train = head_slides(slides=3)
    other = [replace(s, target=Targets.of_dense(s.targets.dense()[::-1].copy())) for s in train]
    first, second = fitted(train), fitted(other)
    for key, value in of_autoencoder(first).items():
        np.testing.assert_array_equal(value, of_autoencoder(second)[key])
    assert np.abs(first.predict(train[0]) - second.predict(train[0])).max() > 1e-3


def test_the_autoencoder_is_frozen_while_the_perceptron_learns(head_slides) -> None:
    train = head_slides(slides=3)
    short, long = fitted(train, epochs=1), fitted(train, epochs=1, learning_rate=0.1)
    assert not any(weight.requires_grad for weight in short.network.autoencoder.parameters())
    for key, value in of_autoencoder(short).items():
        np.testing.assert_array_equal(value, of_autoencoder(long)[key])
    name = "network.perceptron.0.weight"
    assert np.abs(short.tensors()[name] - long.tensors()[name]).max() > 1e-2


@pytest.mark.parametrize("pair", ["bottleneck=0", "width=0", "autoencoder_epochs=0"])
def test_settings_are_checked(pair: str) -> None:
    with pytest.raises(HeadError, match=pair.split("=")[0]):
        parse_settings(MLP, [pair])
