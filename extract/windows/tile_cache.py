"""Decoded tiles in a fixed piece of memory, shared by the threads that read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import RegionError
from mmap_st.extract.windows.read_plan import NEVER, ReadPlan

_LOG = logging.getLogger(__name__)
_NOWHERE, _FREE = -1, -1
_MISSING, _DECODING, _READY, _DAMAGED = range(4)


class TileCache:
    """Holds the tiles that a read plan needs, and forgets those whose next use is farthest.

    A step acquires all of its tiles at once or waits, so that steps cannot starve each other; each tile is
    decoded by the step that asked first, and the others wait for it.

    Parameters
    ----------
    plan
        What will be needed, and when again.
    slots
        Tiles to hold at most; more where one step alone needs more.
    decode
        Fills a slot (bytes,) uint8 with a tile of the plan, given by its number.

    Attributes
    ----------
    arena
        (slots + 1, bytes) uint8; slot 0 is white, and stands for what lies outside of a slide.
    slot_of
        (tiles,) slot of each tile, -1 where it is not held.
    decoded
        Tiles decoded so far, again counted again.
    """

    def __init__(self, plan: ReadPlan, slots: int, decode: Callable[[int, NDArray[np.uint8]], None]) -> None:
        slots = max(min(slots, len(plan.tiles)), plan.most_tiles)
        self._plan, self._decode = plan, decode
        self.arena = np.empty((slots + 1, max(plan.tile_bytes, 1)), np.uint8)
        self.arena[0] = 255
        self.slot_of = np.full(len(plan.tiles), _NOWHERE, np.int32)
        self.decoded = 0
        self._state = np.full(len(plan.tiles), _MISSING, np.uint8)
        # Of each slot: the tile in it, how many steps are using it, the next step that will.
        self._tile = np.full(slots + 1, _FREE, np.int32)
        self._users = np.zeros(slots + 1, np.int32)
        self._next_use = np.full(slots + 1, -1, np.int32)
        self._free = list(range(slots, 0, -1))
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def acquire(self, step: int) -> NDArray[np.bool_]:
        """Have all tiles of a step in the arena, until `release`; decode those that are not there.

        Returns
        -------
        (t,) for each tile of the step, whether it can be read.

        Raises
        ------
        ImageError
            If the slide cannot be decoded at all; nothing is held then. So do all later steps, and those that
            wait: what one of them could not decode is no damage of the others' windows.
        """
        tiles, later = self._of(step)
        try:
            for tile in self._reserve(tiles, later):
                self._settle(tile, self._decoded(tile))
            with self._changed:
                self._changed.wait_for(
                    lambda: self._failure is not None or bool((self._state[tiles] >= _READY).all())
                )
                self._raise_failure()
                return np.asarray(self._state[tiles] == _READY)
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()
            raise

    def _decoded(self, tile: int) -> int:
        """Decode a tile into its slot; whether it is ready or damaged."""
        try:
            self._decode(tile, self.arena[self.slot_of[tile]])
        except RegionError as error:
            _LOG.warning("%s", error)
            return _DAMAGED
        return _READY

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def release(self, step: int) -> None:
        """Let go of a step's tiles."""
        tiles, _ = self._of(step)
        with self._changed:
            slots = self.slot_of[tiles]
            self._users[slots] -= 1
            done = slots[(self._users[slots] == 0) & (self._next_use[slots] == NEVER)]
            self._forget(done)
            self._changed.notify_all()

    def close(self) -> None:
        """Give the arena's memory back."""
        self.arena = np.empty((0, 0), np.uint8)

    def _of(self, step: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        part = slice(self._plan.step_tiles[step], self._plan.step_tiles[step + 1])
        return self._plan.needed[part], self._plan.next_use[part]

    def _reserve(self, tiles: NDArray[np.int32], later: NDArray[np.int32]) -> list[int]:
        """Pin all tiles of a step; return those that the caller has to decode."""
        with self._changed:
            while True:
                self._raise_failure()
                here = self.slot_of[tiles]
                held = here[here != _NOWHERE]
                lacking = len(tiles) - len(held)
                idle = (self._tile != _FREE) & (self._users == 0)
                idle[held] = False
                if lacking <= len(self._free) + int(idle.sum()):
                    break
                self._changed.wait()
            short = lacking - len(self._free)
            if short > 0:
                candidates = np.flatnonzero(idle)
                farthest = np.argpartition(-self._next_use[candidates], short - 1)[:short]
                self._forget(candidates[farthest])
            absent = here == _NOWHERE
            mine: list[int] = []
            for tile in tiles[absent].tolist():
                slot = self._free.pop()
                self.slot_of[tile], self._tile[slot], self._next_use[slot] = slot, tile, -1
                if self._state[tile] != _DAMAGED:
                    self._state[tile] = _DECODING
                    mine.append(tile)
            slots = self.slot_of[tiles]
            self._users[slots] += 1
            # A later step may have come first; then what it knows is newer.
            self._next_use[slots] = np.maximum(self._next_use[slots], later)
            self.decoded += len(mine)
            return mine

    def _forget(self, slots: NDArray[np.int32] | NDArray[np.int64]) -> None:
        tiles = self._tile[slots]
        self.slot_of[tiles] = _NOWHERE
        whole = tiles[self._state[tiles] != _DAMAGED]
        self._state[whole] = _MISSING
        self._tile[slots] = _FREE
        self._free.extend(slots.tolist())

    def _settle(self, tile: int, state: int) -> None:
        with self._changed:
            self._state[tile] = state
            self._changed.notify_all()
