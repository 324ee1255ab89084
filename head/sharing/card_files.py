"""The two files of a run's card, and whether one in a folder is ours: a user's own is never replaced."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

README, CARD_JSON = "README.md", "card.json"
#: Value of the key ``format`` of card.json.
CARD_FORMAT = "mmap-card"
# The last line of a README that is as it was written: a comment, which no viewer shows.
_SEAL = re.compile(rb"(.*\n)<!-- written by mmap; sha256 of the above: ([0-9a-f]{64}) -->\n", re.DOTALL)
# A card has a few kilobytes.
_MOST_BYTES = 4 << 20


def sealed(text: str) -> str:
    """A text that ends with a line end, and a last line by which `is_own` knows it again."""
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}<!-- written by mmap; sha256 of the above: {sha256} -->\n"


def is_own(file: Path) -> bool:
    """Whether a README.md or card.json is one that the program wrote, and nobody has changed since.

    What cannot be read is somebody's. A card.json that was changed is still ours: nobody writes one by hand.
    """
    try:
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            return False
        content = file.read_bytes()
    except OSError:
        return False
    if file.name == README:
        found = _SEAL.fullmatch(content)
        return found is not None and hashlib.sha256(found[1]).hexdigest().encode() == found[2]
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and facts.get("format") == CARD_FORMAT
