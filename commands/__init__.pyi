__all__ = ["cohorts", "console", "encoders", "evaluation", "extraction", "heads", "sharing"]

from . import cohorts, console, encoders, evaluation, extraction, heads, sharing
