"""A head for others: its card, which says what it is valid for, and the one file that holds both."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
