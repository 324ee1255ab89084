"""Published methods on stored embeddings; each file says what it keeps of its paper, and what it changes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
