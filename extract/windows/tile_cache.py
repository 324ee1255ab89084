"""Decoded tiles in a fixed piece of memory, shared by the threads that read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import RegionError
from mmap_st.extract.windows.read_plan import NEVER, ReadPlan

_LOG = logging.getLogger(__name__)
_NOWHERE, _FREE = -1, -1
_MISSING, _DECODING, _READY, _DAMAGED = range(4)

#: Fills slots, each (bytes,) uint8, with tiles of one block, given by their numbers in the plan.
Decode = Callable[[Sequence[int], Sequence[NDArray[np.uint8]]], None]


class TileCache:
    """Holds the tiles that a read plan needs, and forgets those whose next use is farthest.

    A step acquires all of its tiles at once or waits, so that steps cannot starve each other; each tile is
    decoded by the step that needs it first, and the others wait for it. Where tiles are decoded in blocks,
    that step decodes the tiles of the block that later steps need along with its own, as far as there is
    room.

    Parameters
    ----------
    plan
        What will be needed, and when again.
    slots
        Tiles to hold at most; more where one step and one block need more.
    decode
        Decodes tiles into their slots.

    Attributes
    ----------
    arena
        (slots + 1, bytes) uint8; slot 0 is white, and stands for what lies outside of a slide.
    slot_of
        (tiles,) slot of each tile, -1 where it is not held.
    decoded
        Blocks decoded so far, or parts of them, again counted again; where blocks are single tiles, tiles.
    """

    def __init__(self, plan: ReadPlan, slots: int, decode: Decode) -> None:
        least = plan.most_tiles
        if plan.most_tiles_of_a_block > 1:
            least += plan.most_tiles_of_a_block
        slots = max(plan.most_tiles, min(max(slots, least), len(plan.tiles)))
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
        self._blocks = _Blocks(plan) if plan.most_tiles_of_a_block > 1 else None
        self._lock = threading.Lock()
        # Waking a thread that has to wait on costs more than decoding a tile: each waits for its own.
        self._room = threading.Condition(self._lock)
        self._waiting: dict[int, list[_Waiting]] = {}
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
            wait: what one of them could not decode is not damage of the others' windows.
        """
        tiles, later = self._of(step)
        try:
            for own, ahead in self._reserve(step, tiles, later):
                self._settle(own, ahead, self._decoded([*own, *ahead]))
            with self._lock:
                self._wait_for(tiles[self._state[tiles] < _READY].tolist())
                self._raise_failure()
                return np.asarray(self._state[tiles] == _READY)
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
                self._room.notify_all()
                for waiting in {id(one): one for many in self._waiting.values() for one in many}.values():
                    waiting.over.notify()
            raise

    def _wait_for(self, tiles: list[int]) -> None:
        """Wait until others have decoded these tiles, or the slide has failed."""
        if not tiles:
            return
        waiting = _Waiting(threading.Condition(self._lock), len(tiles))
        for tile in tiles:
            self._waiting.setdefault(tile, []).append(waiting)
        waiting.over.wait_for(lambda: self._failure is not None or waiting.tiles == 0)

    def _decoded(self, tiles: Sequence[int]) -> int:
        """Decode tiles of one block into their slots; whether they are ready or damaged."""
        try:
            self._decode(tiles, [self.arena[slot] for slot in self.slot_of[list(tiles)]])
        except RegionError as error:
            _LOG.warning("%s", error)
            return _DAMAGED
        return _READY

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def release(self, step: int) -> None:
        """Release a step's tiles."""
        tiles, _ = self._of(step)
        with self._lock:
            slots = self.slot_of[tiles]
            self._users[slots] -= 1
            done = slots[(self._users[slots] == 0) & (self._next_use[slots] == NEVER)]
            self._forget(done)
            self._room.notify_all()

    def close(self) -> None:
        """Free the arena's memory."""
        self.arena = np.empty((0, 0), np.uint8)

    def _of(self, step: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        part = slice(self._plan.step_tiles[step], self._plan.step_tiles[step + 1])
        return self._plan.needed[part], self._plan.next_use[part]

    def _reserve(
        self, step: int, tiles: NDArray[np.int32], later: NDArray[np.int32]
    ) -> list[tuple[list[int], list[int]]]:
        """Pin all tiles of a step; return those that the caller has to decode, block by block.

        Of each block the step's own tiles, and the tiles that are decoded along with them for later steps.
        """
        with self._lock:
            while True:
                self._raise_failure()
                here = self.slot_of[tiles]
                held = here[here != _NOWHERE]
                missing = len(tiles) - len(held)
                idle = (self._tile != _FREE) & (self._users == 0)
                idle[held] = False
                if missing <= len(self._free) + int(idle.sum()):
                    break
                self._room.wait()
            short = missing - len(self._free)
            if short > 0:
                candidates = np.flatnonzero(idle)
                farthest = np.argpartition(-self._next_use[candidates], short - 1)[:short]
                self._forget(candidates[farthest])
            mine: dict[int, list[int]] = {}
            for tile in tiles[here == _NOWHERE].tolist():
                self._place(tile, -1)
                if self._state[tile] != _DAMAGED:
                    self._state[tile] = _DECODING
                    mine.setdefault(int(self._plan.block_of[tile]), []).append(tile)
            slots = self.slot_of[tiles]
            self._users[slots] += 1
            self.decoded += len(mine)
            if self._blocks is None:
                # A later step may have come first; then what it knows is newer.
                self._next_use[slots] = np.maximum(self._next_use[slots], later)
                return [(own, []) for own in mine.values()]
            # To decode a block again is dear: steps that were overtaken by this one count, too.
            self._blocks.reached[step] = True
            self._next_use[slots] = [self._blocks.next_use(tile) for tile in tiles.tolist()]
            return [(own, self._reserve_ahead(block)) for block, own in mine.items()]

    def _reserve_ahead(self, block: int) -> list[int]:
        """Pin what later steps need of a block, the soonest first, in place of what is needed after it."""
        assert self._blocks is not None
        wanted = sorted(
            (use, tile)
            for tile in self._blocks.tiles(block)
            if self.slot_of[tile] == _NOWHERE
            and self._state[tile] == _MISSING
            and (use := self._blocks.next_use(tile)) != NEVER
        )
        idle = np.flatnonzero((self._tile != _FREE) & (self._users == 0))
        replaceable = idle[np.argsort(self._next_use[idle], kind="stable")].tolist()
        ahead: list[int] = []
        for use, tile in wanted:
            if not self._free:
                if not replaceable or self._next_use[replaceable[-1]] <= use:
                    break
                self._forget(np.array([replaceable.pop()]))
            slot = self._place(tile, use)
            self._users[slot] = 1
            self._state[tile] = _DECODING
            ahead.append(tile)
        return ahead

    def _place(self, tile: int, next_use: int) -> int:
        """Give a tile a free slot."""
        slot = self._free.pop()
        self.slot_of[tile], self._tile[slot], self._next_use[slot] = slot, tile, next_use
        return slot

    def _forget(self, slots: NDArray[np.int32] | NDArray[np.int64]) -> None:
        tiles = self._tile[slots]
        self.slot_of[tiles] = _NOWHERE
        whole = tiles[self._state[tiles] != _DAMAGED]
        self._state[whole] = _MISSING
        self._tile[slots] = _FREE
        self._free.extend(slots.tolist())

    def _settle(self, own: list[int], ahead: list[int], state: int) -> None:
        with self._lock:
            self._state[own + ahead] = state
            for tile in (*own, *ahead):
                for waiting in self._waiting.pop(tile, ()):
                    waiting.tiles -= 1
                    if waiting.tiles == 0:
                        waiting.over.notify()
            if ahead:
                self._users[self.slot_of[ahead]] -= 1
                self._room.notify_all()


@dataclass
class _Waiting:
    """A thread that waits for tiles which others decode.

    Attributes
    ----------
    over
        Notified when the last of them is decoded, or the slide has failed.
    tiles
        How many are left.
    """

    over: threading.Condition
    tiles: int


class _Blocks:
    """Which tiles a block has in a plan, and when each is needed by a step that has not started.

    Attributes
    ----------
    reached
        (s,) steps that have reserved their tiles.
    """

    def __init__(self, plan: ReadPlan) -> None:
        self.reached = np.zeros(len(plan), np.bool_)
        self._tiles = np.argsort(plan.block_of, kind="stable")
        self._first_tile = np.searchsorted(plan.block_of[self._tiles], np.arange(plan.blocks + 1))
        step_of_use = np.repeat(np.arange(len(plan)), np.diff(plan.step_tiles))
        by_tile = np.argsort(plan.needed, kind="stable")
        self._steps = step_of_use[by_tile]
        self._first_use = np.searchsorted(plan.needed[by_tile], np.arange(len(plan.tiles) + 1))

    def tiles(self, block: int) -> list[int]:
        """Numbers of the block's tiles."""
        found: list[int] = self._tiles[self._first_tile[block] : self._first_tile[block + 1]].tolist()
        return found

    def next_use(self, tile: int) -> int:
        """The first step that needs a tile and has not started; `NEVER` if there is none."""
        steps = self._steps[self._first_use[tile] : self._first_use[tile + 1]]
        waiting = steps[~self.reached[steps]]
        return int(waiting[0]) if len(waiting) else int(NEVER)
