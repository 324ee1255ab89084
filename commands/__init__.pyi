__all__ = [
    "Command",
    "cohorts",
    "console",
    "encoders",
    "evaluation",
    "example",
    "extraction",
    "head_list",
    "heads",
    "reports",
    "sharing",
    "upkeep",
    "viewing",
]

from . import (
    cohorts,
    console,
    encoders,
    evaluation,
    extraction,
    head_list,
    heads,
    reports,
    sharing,
    upkeep,
    viewing,
)
from .examples import example
from .options import Command
