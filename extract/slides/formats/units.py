"""Units of length in images' metadata, however they are spelt."""

from __future__ import annotations

import unicodedata

_MICROMETRES = {
    **dict.fromkeys(("um", "micron", "microns"), 1.0),
    **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micrometres"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-3),
    **dict.fromkeys(("a", "angstrom", "angstroms"), 1e-4),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 1e4),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e6),
    **dict.fromkeys(("in", "inch", "inches"), 25_400.0),
}


def micrometres_of(unit: object) -> float | None:
    """Micrometres of one unit; None for what is no unit of length, such as ``pixel``.

    Examples
    --------
    >>> micrometres_of("µm"), micrometres_of("microns"), micrometres_of("pixel")
    (1.0, 1.0, None)
    """
    # The micro sign and the Greek letter look alike, and so do the ångström sign and the letter.
    word = unicodedata.normalize("NFKC", str(unit)).strip().casefold()
    return _MICROMETRES.get(word.replace("\N{GREEK SMALL LETTER MU}", "u").replace("å", "a"))
