"""Blocks of spots, and how networks are fitted."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmap_st.errors import HeadError
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import Limits, parse_settings, plan_validation
from mmap_st.head.networks import fitting as network_fit
from mmap_st.head.networks.fitting import network_method
from mmap_st.head.networks.network import BlockNetwork, NetworkSettings, split_into_blocks, tensor
from mmap_st.head.networks.optimiser import Schedule, optimise
from mmap_st.head.scoring.metrics import slide_metrics


def bare_slide(n: int, valid: np.ndarray | None = None, seed: int = 0) -> HeadSlide:
    rng = np.random.default_rng(seed)
    return HeadSlide(
        name="S",
        patient="P",
        ids=tuple(map(str, range(n))),
        xy=rng.uniform(0, 5000, (n, 2)),
        embedding=rng.normal(size=(n, 1, 3)).astype(np.float32),
        valid=np.ones(n, np.bool_) if valid is None else valid,
    )


@given(n=st.integers(1, 200), most=st.integers(1, 60), seed=st.integers(0, 99))
def test_parts_hold_every_valid_spot_once_and_are_not_too_big(n: int, most: int, seed: int) -> None:
    valid = np.random.default_rng(seed).random(n) < 0.8
    parts = split_into_blocks(bare_slide(n, valid, seed), most)
    assert all(0 < len(part) <= most for part in parts)
    rows = np.concatenate([part.rows for part in parts]) if parts else np.zeros(0, np.int64)
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(valid))
    assert all((np.diff(part.rows) > 0).all() for part in parts)


def test_parts_are_compact() -> None:
    x, y = np.meshgrid(np.arange(40), np.arange(10))
    slide = replace(bare_slide(400), xy=np.stack([x.ravel(), y.ravel()], axis=1) * 100.0)
    extents = [np.ptp(slide.xy[part.rows], axis=0).max() for part in split_into_blocks(slide, 100)]
    assert max(extents) <= 900.0


class Linear(BlockNetwork):
    """As little as a network can be."""

    def __init__(self, sizes, settings) -> None:
        super().__init__()
        self.out = nn.Linear(sizes.magnifications * sizes.width, sizes.outputs)

    def prepare_inputs(self, block):
        return {"embedding": tensor(block.embedding).flatten(1)}

    def forward(self, inputs, rows):
        return self.out(inputs["embedding"][rows])


LINEAR = network_method("linear", NetworkSettings, Linear)


def silent(text: str) -> None:
    pass


def test_a_few_lines_make_a_head_that_learns(head_slides) -> None:
    *train, test = head_slides(slides=4)
    settings = parse_settings(LINEAR, ["epochs=30", "learning_rate=0.01", "spots_per_part=32"])
    head = LINEAR.fit(train, plan_validation(train, ()), settings, 0, silent)
    assert slide_metrics(head.predict(test), test.targets.dense()).pcc > 0.8
    assert head.chosen["epochs"] in [row["epoch"] for row in head.history]
    assert [row["epoch"] for row in head.history] == [6, 12, 18, 24, 30]


def test_validation_slides_choose_and_are_not_fitted(head_slides) -> None:
    *train, validation, test = head_slides(slides=5)
    settings = NetworkSettings(epochs=1)
    head = LINEAR.fit(train, plan_validation(train, [validation]), settings, 0, silent)
    other = replace(validation, embedding=validation.embedding[::-1].copy())
    again = LINEAR.fit(train, plan_validation(train, [other]), settings, 0, silent)
    assert not head.held_out()
    np.testing.assert_array_equal(head.predict(test), again.predict(test))
    assert head.history != again.history


def test_held_out_spots_are_predicted_by_a_network_that_did_not_see_them(head_slides) -> None:
    train = head_slides(slides=3)
    changed = replace(train[0].targets, values=train[0].targets.values * np.float32(3))
    others = [replace(train[0], target=changed), *train[1:]]
    settings = NetworkSettings(epochs=1)  # more would be chosen among by the changed targets
    first, again = (
        LINEAR.fit(slides, plan_validation(slides, ()), settings, 0, silent).held_out()
        for slides in (train, others)
    )
    assert [part.slide.name for part in first] == [slide.name for slide in train]
    np.testing.assert_array_equal(first[0].predicted, again[0].predicted)
    assert np.abs(first[1].predicted - again[1].predicted).max() > 1e-3


def test_a_big_cohort_is_subsampled_by_whole_blocks(head_slides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_fit, "_MAX_SPOTS", 100)
    train = head_slides(slides=4)  # of 60 spots each: every third slide is used
    kept: list[list[str]] = []

    class Noting(Linear):
        def fit_reference(self, train) -> None:
            kept.append([training.block.slide.name for training in train])

    method = network_method("noting", NetworkSettings, Noting)
    method.fit(train, plan_validation(train, [train[3]]), NetworkSettings(epochs=1), 0, silent)
    assert kept == [["S0", "S3"]]


def test_an_epoch_has_no_more_spots_than_asked_for(head_slides) -> None:
    train = head_slides(slides=4)  # of 60 spots each
    losses: list[int] = []

    class Counting(Linear):
        def loss(self, inputs, rows, target):
            losses.append(len(rows))
            return super().loss(inputs, rows, target)

    method = network_method("counting", NetworkSettings, Counting)
    settings = NetworkSettings(epochs=1, parts_per_step=1, spots_per_part=10, spots_per_epoch=80)
    method.fit(train, plan_validation(train, [train[3]]), settings, 0, silent)
    assert losses == [10] * 8


def test_only_the_loss_is_given_what_is_seen_of_targets(head_slides) -> None:
    train = head_slides(slides=3)

    class Peeking(Linear):
        def prepare_targets(self, training):
            return {"spread": tensor(training.target.std(axis=1))}

        def forward(self, inputs, rows):
            assert ("spread" in inputs) == self.training
            return super().forward(inputs, rows)

    method = network_method("peeking", NetworkSettings, Peeking)
    head = method.fit(train, plan_validation(train, ()), NetworkSettings(epochs=1), 0, silent)
    assert np.isfinite(head.predict(train[0])).all()


def test_big_panels_are_fitted_on_shared_axes(head_slides) -> None:
    *train, test = head_slides(slides=4, genes=40)
    settings = NetworkSettings(rank=6, epochs=30, learning_rate=0.01)
    head = LINEAR.fit(train, plan_validation(train, ()), settings, 0, silent)
    assert head.tensors()["network.out.weight"].shape[0] == 6
    assert head.predict(test).shape == (60, 40)
    assert slide_metrics(head.predict(test), test.targets.dense()).pcc > 0.4


def test_a_rate_that_runs_away_is_said(head_slides) -> None:
    train = head_slides(slides=3)
    settings = NetworkSettings(epochs=3, learning_rate=1e30)
    with pytest.raises(HeadError, match="learning_rate"):
        LINEAR.fit(train, plan_validation(train, ()), settings, 0, silent)


def test_weights_of_another_network_are_refused(head_slides) -> None:
    from mmap_st.head.interface import Shape

    train = head_slides(slides=3)
    settings = NetworkSettings(epochs=1)
    head = LINEAR.fit(train, plan_validation(train, ()), settings, 0, silent)
    with pytest.raises(HeadError, match="do not fit"):
        LINEAR.load(head.tensors(), settings, Shape(3, 12, 5))


@pytest.mark.parametrize("pair", ["epochs=0", "dropout=1", "device=tpu", "learning_rate=-1", "rank=0"])
def test_settings_are_checked(pair: str) -> None:
    with pytest.raises(HeadError, match=pair.split("=")[0]):
        parse_settings(LINEAR, [pair])


@pytest.mark.parametrize("epochs", range(1, 6))
def test_any_number_of_steps_can_be_scheduled(epochs: int) -> None:
    for steps in range(1, 12):
        network = nn.Linear(2, 1)
        losses = optimise(
            network, lambda n=network: n(torch.ones(1, 2)).sum(), Schedule(1e-3, 0, epochs, steps)
        )
        assert len(list(losses)) == epochs


def test_a_card_that_is_not_there_is_refused_in_training_alone(head_slides) -> None:
    train = head_slides(slides=3)
    settings = parse_settings(LINEAR, ["device=cuda"])
    if not torch.cuda.is_available():
        with pytest.raises(HeadError, match="no NVIDIA card"):
            LINEAR.fit(train, plan_validation(train, ()), settings, 0, silent)


def test_torchs_generator_is_left_alone(head_slides) -> None:
    train = head_slides(slides=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    LINEAR.fit(train, plan_validation(train, ()), NetworkSettings(epochs=1), 0, silent)
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def held_rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts embeddings of blocks: rows that are in memory now, and at most; rows that were read in all."""
    count = {"now": 0, "most": 0, "read": 0}
    standardised = HeadSlide.standardised

    def counted(self, rows):
        values = standardised(self, rows)
        count["now"] += len(rows)
        count["read"] += len(rows)
        count["most"] = max(count["most"], count["now"])
        weakref.finalize(values, lambda: count.update(now=count["now"] - len(rows)))
        return values

    monkeypatch.setattr(HeadSlide, "standardised", counted)
    return count


def test_only_blocks_that_train_or_validate_are_held(head_slides, held_rows, monkeypatch) -> None:
    monkeypatch.setattr(network_fit, "_MAX_SPOTS", 130)
    monkeypatch.setattr(network_fit, "LIMITS", Limits(validation=60))
    train = head_slides(slides=8)  # of 60 spots each; two slides of the others are trained on in each fold
    LINEAR.fit(train, plan_validation(train, []), NetworkSettings(epochs=2), 0, silent)
    assert held_rows["read"] > 480
    assert held_rows["most"] <= 120 + 60


def test_blocks_of_a_small_cohort_are_read_once(head_slides, held_rows) -> None:
    train = head_slides(slides=4)
    LINEAR.fit(train, plan_validation(train, []), NetworkSettings(epochs=2), 0, silent)
    assert held_rows["read"] == 240


def test_a_prediction_holds_one_block_at_a_time(head_slides, held_rows) -> None:
    (train,) = head_slides(slides=1)
    head = LINEAR.fit([train], plan_validation([train], [train]), NetworkSettings(epochs=1), 0, silent)
    (big,) = head_slides(slides=1, spots=9_000)
    held_rows["most"] = held_rows["now"] = 0
    assert np.isfinite(head.predict(big)).all()
    assert held_rows["most"] == 2_250
