"""Tables as people save them: text with any separator, gzipped or not, tall or wide, and Parquet."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
