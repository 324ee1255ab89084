"""What bounds the time and memory of a fit, whatever the size of the cohort."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Most spots that a step looks at, all slides together; taken evenly where there are more.

    Attributes
    ----------
    attention
        Learned attention is trained on.
    epoch
        One epoch of it sees.
    judged
        Choices (strength, number of epochs) are made by.
    block
        Are computed at once, of one slide.
    """

    attention: int = 102_400
    epoch: int = 51_200
    judged: int = 25_600
    block: int = 4_096


LIMITS = Limits()
