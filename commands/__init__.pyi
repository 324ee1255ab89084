__all__ = ["cohorts", "console", "encoders", "evaluation", "extraction", "heads"]

from . import cohorts, console, encoders, evaluation, extraction, heads
