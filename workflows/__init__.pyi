__all__ = [
    "SETTINGS",
    "run_demo",
]

from .demo import SETTINGS, run_demo
