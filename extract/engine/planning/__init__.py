"""What is to be done: where spots lie, a plan for each slide, and which job takes it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
