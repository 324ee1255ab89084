"""What your own heads import, and how they are registered; see docs/heads.md."""

from mmap_st._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
