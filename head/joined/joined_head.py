"""Several encoders in one head: one fit of the head for each, their predictions averaged.

The heads know nothing of it. A joined head has a member for each encoder, and the input of each is the slide
as that encoder sees it (`HeadSlide.by_encoder`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.attending import Attention, predict_and_attend
from mmap_st.head.blocks import Block, predict_blocks
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import (
    FittedHead,
    HeadMethod,
    HeldOut,
    Shape,
    Tensors,
    Validation,
    predict_held_out,
    subsample_step,
)
from mmap_st.head.joined.stacking import Weights, best_weights
from mmap_st.progress import ProgressCallback

WEIGHTS = "joined.weights"
_MEMBER = re.compile(r"^encoder\d+\.")


def join_slides(slides: Sequence[HeadSlide]) -> HeadSlide:
    """One slide as several encoders see it; a spot is valid where it is valid for all of them."""
    if len(slides) == 1:
        return slides[0]
    valid = np.logical_and.reduce([slide.valid for slide in slides])
    first, *others = (replace(slide, valid=valid) for slide in slides)
    return replace(first, others=tuple(others))


def seen_by(slides: Sequence[HeadSlide], encoder: int) -> list[HeadSlide]:
    """Slides as one encoder sees them, by its number."""
    return [slide.by_encoder[encoder] for slide in slides]


@dataclass(frozen=True)
class JoinedHead:
    """A trained head of several encoders.

    Attributes
    ----------
    encoders, members
        The names of the encoders, and the head of each.
    weights
        (E,) of the members' predictions.
    rule
        How the weights were chosen, in words; empty for a head that was loaded.
    parts
        Predictions of spots that no fit saw, to calibrate on.
    """

    encoders: tuple[str, ...]
    members: tuple[FittedHead, ...]
    weights: Weights
    rule: str = ""
    parts: tuple[HeldOut, ...] = ()

    @property
    def history(self) -> list[dict[str, float]]:
        """Validation scores of all members, with the number of the encoder."""
        return [{"encoder": k, **row} for k, member in enumerate(self.members) for row in member.history]

    @history.setter
    def history(self, rows: list[dict[str, float]]) -> None:  # the interface has an attribute
        raise AttributeError("the history of a joined head is that of its members")

    @property
    def chosen(self) -> Mapping[str, object]:
        """The weights, how they were chosen, and what each member chose."""
        shares = dict(zip(self.encoders, map(float, self.weights), strict=True))
        members = {name: dict(one.chosen) for name, one in zip(self.encoders, self.members, strict=True)}
        return {"weights": shares, "weights_chosen": self.rule, "encoders": members}

    def predict(self, slide: HeadSlide) -> NDArray[np.float32]:
        """(n, G) float32, the weighted mean of the members' predictions; rows of invalid spots are NaN."""
        pairs = zip(self.members, slide.by_encoder, strict=True)
        return _mean_of([member.predict(seen) for member, seen in pairs], self.weights)

    def predict_and_attend(self, slide: HeadSlide) -> tuple[NDArray[np.float32], Attention | None]:
        """Predict, with the attention of the member of the greatest weight that attends to prototypes."""
        pairs = zip(self.members, slide.by_encoder, strict=True)
        made = [predict_and_attend(member, seen) for member, seen in pairs]
        attention = self._of_heaviest([of_member for _, of_member in made])
        return _mean_of([predicted for predicted, _ in made], self.weights), attention

    def predict_blocks(self, slide: HeadSlide, size: int, *, attend: bool) -> Iterator[Block]:
        """Predict block by block, those of all members side by side."""
        pairs = zip(self.members, slide.by_encoder, strict=True)
        members = [predict_blocks(member, seen, size, attend=attend) for member, seen in pairs]
        for made in zip(*members, strict=True):
            attention = self._of_heaviest([block.attention for block in made])
            yield Block(made[0].rows, _mean_of([block.predicted for block in made], self.weights), attention)

    def _of_heaviest(self, attentions: Sequence[Attention | None]) -> Attention | None:
        """The attention of the member of the greatest weight that has some."""
        for number in map(int, np.argsort(-self.weights, kind="stable")):
            of_member = attentions[number]
            if of_member is not None:
                return replace(of_member, encoder=number)
        return None

    def tensors(self) -> Tensors:
        """The weights, and those of each member under its number."""
        found: Tensors = {WEIGHTS: self.weights}
        for number, member in enumerate(self.members):
            found |= to_member(member.tensors(), number)
        return found

    def held_out(self) -> Sequence[HeldOut]:
        """The weighted mean of what the members' fits of the inner folds predict."""
        return self.parts


def to_member(tensors: Tensors, encoder: int) -> Tensors:
    """Tensors under the names that they have among those of a joined head."""
    return {f"encoder{encoder}.{name}": value for name, value in tensors.items()}


def of_member(tensors: Tensors, encoder: int) -> Tensors:
    """Those of a joined head's tensors that are one member's, under their own names."""
    prefix = f"encoder{encoder}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def own_name(name: str) -> str:
    """What a tensor of a joined head is called in the head that it is of."""
    return _MEMBER.sub("", name)


def fit_joined(
    method: HeadMethod,
    encoders: Sequence[str],
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: Any,
    seed: int,
    tell: ProgressCallback,
) -> FittedHead:
    """Fit a head for each encoder, and choose the weights of their predictions; of one encoder: fit it.

    The weights are chosen as everything else is: by what the fits of the inner folds predict of the spots
    that they did not see, or else on the slides that validate. Where a head has no such predictions, all
    weigh the same.
    """
    if len(encoders) == 1:
        return method.fit(train, validation, settings, seed, tell)
    members, held_out = [], []
    for number, name in enumerate(encoders):

        def tell_whose(text: str, name: str = name) -> None:
            tell(f"{name}: {text}")

        own = _seen_by(validation, number)
        member = method.fit(seen_by(train, number), own, settings, seed, tell_whose)
        members.append(member)
        held_out.append(_held_out(member, own))
    if not _same_spots(held_out):
        equal = np.full(len(encoders), 1 / len(encoders))
        rule = "the same for all: the head has no predictions of spots that its fits did not see"
        return JoinedHead(tuple(encoders), tuple(members), equal, rule)
    weights = best_weights(held_out)
    rule = validation.rule
    parts = _joined_parts(held_out, weights) if validation.refit else ()
    return JoinedHead(tuple(encoders), tuple(members), weights, rule, parts)


def load_joined(
    method: HeadMethod, encoders: Sequence[str], tensors: Tensors, settings: Any, shapes: Sequence[Shape]
) -> FittedHead:
    """Load the head of each encoder, of these shapes; of one encoder: load it.

    Raises
    ------
    ValueError
        If the weights are not those of so many encoders.
    """
    if len(encoders) == 1:
        return method.load(tensors, settings, shapes[0])
    weights = np.asarray(tensors[WEIGHTS], np.float64)
    if weights.shape != (len(encoders),) or not (weights >= 0).all() or not np.isclose(weights.sum(), 1):
        raise ValueError(f"the weights of {len(encoders)} encoders are {weights.tolist()}")
    members = (method.load(of_member(tensors, k), settings, shape) for k, shape in enumerate(shapes))
    return JoinedHead(tuple(encoders), tuple(members), weights)


def _seen_by(validation: Validation, encoder: int) -> Validation:
    """The same folds, of slides as one encoder sees them."""
    folds = tuple(
        (tuple(seen_by(fitted, encoder)), tuple(seen_by(left_out, encoder)))
        for fitted, left_out in validation.folds
    )
    return replace(validation, folds=folds)


def _held_out(member: FittedHead, validation: Validation) -> Sequence[HeldOut]:
    """Predictions of spots that a member's fit did not see: of inner folds, or of slides that validate."""
    if validation.refit:
        return member.held_out()
    slides = [slide for _, left_out in validation.folds for slide in left_out]
    step = subsample_step(sum(int(slide.usable.sum()) for slide in slides), slides[0].targets.genes)
    return [predict_held_out(member, slide, step) for slide in slides]


def _same_spots(held_out: Sequence[Sequence[HeldOut]]) -> bool:
    """Whether there are predictions, and all members' are of the same spots in the same order."""

    def spots(parts: Sequence[HeldOut]) -> list[tuple[str, list[str]]]:
        return [(part.slide.name, [part.slide.ids[row] for row in part.rows]) for part in parts]

    first, *others = map(spots, held_out)
    return any(rows for _, rows in first) and all(other == first for other in others)


def _joined_parts(held_out: Sequence[Sequence[HeldOut]], weights: Weights) -> tuple[HeldOut, ...]:
    return tuple(
        HeldOut(
            replace(parts[0].slide, others=tuple(part.slide for part in parts[1:])),
            parts[0].rows,
            _mean_of([part.predicted for part in parts], weights),
        )
        for parts in zip(*held_out, strict=True)
    )


def _mean_of(predicted: Sequence[NDArray[np.float32]], weights: Weights) -> NDArray[np.float32]:
    total = np.zeros(predicted[0].shape, np.float32)
    for values, weight in zip(predicted, weights, strict=True):
        total += np.float32(weight) * values
    return total
