"""Where the time of an extraction goes: what a run measures of itself."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field


@dataclass
class Telemetry:
    """Figures of one slide, or of a whole run.

    Attributes
    ----------
    windows
        Embedded.
    read_wait_s
        Seconds in which nothing could be given to the device, since windows were still being read.
    device_s
        Seconds that the device computed.
    tiles, decodes
        Distinct tiles that the windows touch, and how often one was decoded; of slides that are stored in
        large chunks, both count chunks.
    """

    windows: int = 0
    read_wait_s: float = 0.0
    device_s: float = 0.0
    tiles: int = 0
    decodes: int = 0
    seconds: float = 0.0
    _began: float = field(default_factory=time.perf_counter, repr=False)

    def begin(self) -> None:
        """Time runs from here on."""
        self._began = time.perf_counter()

    def end(self) -> None:
        """Time stops."""
        self.seconds = time.perf_counter() - self._began

    def add(self, other: Telemetry) -> None:
        """Count what another has counted, time apart."""
        for name in ("windows", "read_wait_s", "device_s", "tiles", "decodes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def summary(self) -> dict[str, float | int]:
        """The figures and what follows from them, as JSON."""
        seconds = max(self.seconds or time.perf_counter() - self._began, 1e-9)
        figures = {k: round(v, 3) for k, v in asdict(self).items() if not k.startswith("_")}
        return {
            **figures,
            "windows_per_s": round(self.windows / seconds, 2),
            "read_wait_share": round(self.read_wait_s / seconds, 4),
            "device_busy_share": round(self.device_s / seconds, 4),
            "decode_amplification": round(self.decodes / self.tiles, 4) if self.tiles else 1.0,
        }

    def shares(self) -> str:
        """Where the time goes, in a few words."""
        found = self.summary()
        return (
            f"device busy {found['device_busy_share']:.0%}, waiting for reads {found['read_wait_share']:.0%}"
        )

    def __str__(self) -> str:
        """One line for people."""
        found = self.summary()
        return (
            f"{found['windows_per_s']:.0f} windows/s, {self.shares()},"
            f" {found['decode_amplification']:.2f} decodes a tile"
        )
