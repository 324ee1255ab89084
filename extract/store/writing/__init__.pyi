__all__ = [
    "FAILED",
    "SlideLock",
    "check_unlocked",
    "journal_path",
    "journals_folder",
    "slide_lock",
]

from .failures import FAILED
from .journal import journal_path, journals_folder
from .lock import SlideLock, check_unlocked, slide_lock
