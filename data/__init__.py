"""Cohorts, spots, counts, panels and splits: all data that are neither images nor embeddings."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
