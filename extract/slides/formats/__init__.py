"""Kinds of slide images, one module each; `mmap_st.extract.slides.slide` chooses among them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
