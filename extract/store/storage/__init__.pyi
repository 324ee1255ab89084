__all__ = [
    "AT_A_TIME",
    "MOST_FILES",
    "ROOT",
    "StoreBucket",
    "StoreFolder",
    "StorePlace",
    "StoreZip",
    "check_plain",
    "drafts_below",
    "drafts_in",
    "is_draft",
    "is_packed_store",
    "is_store",
    "opened_place",
    "refuse_read_only",
    "refuse_web",
]

from .bucket import AT_A_TIME, StoreBucket
from .folder import StoreFolder, check_plain, drafts_below, drafts_in, is_draft
from .places import StorePlace, is_store, opened_place, refuse_read_only, refuse_web
from .zipped import MOST_FILES, ROOT, StoreZip, is_packed_store
