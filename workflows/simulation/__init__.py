"""Simulated cohorts: pictures and counts with known causes, written in a public layout."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
