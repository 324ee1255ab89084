"""What networks that predict the spots of a slide share: parts of slides, training, choice of epochs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
