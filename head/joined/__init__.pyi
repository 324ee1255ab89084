__all__ = [
    "JoinedDomain",
    "JoinedHead",
    "best_weights",
    "fit_joined",
    "fit_joined_domain",
    "join_slides",
    "load_joined",
    "own_name",
    "saved_joined_domain",
    "seen_by",
]

from .joined_domain import JoinedDomain, fit_joined_domain, saved_joined_domain
from .joined_head import (
    JoinedHead,
    fit_joined,
    join_slides,
    load_joined,
    own_name,
    seen_by,
)
from .stacking import best_weights
