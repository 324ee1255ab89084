"""One run of one head: what was asked for, fitting, the run folder, predictions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
