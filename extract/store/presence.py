"""A store that is removed while a run reads or writes it: nothing that came of it is taken for a result.

Zarr makes folders anew when it writes, and gives a fill value for what is missing when it reads: without a
look at what is there, a run would end well that saved nothing, or learned from nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from mmap_st.errors import DamagedSlideError, MmapError, RemoteError, StoppedError, StoreError
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.storage import is_store
from mmap_st.extract.windows import mpp_key
from mmap_st.urls import Place


def check_present(store: Place) -> None:
    """Refuse to go on with a store that is no more.

    Raises
    ------
    StoreError
        Saying so.
    """
    if not is_store(store):
        raise StoreError(_gone(store))


@contextmanager
def present(store: Place) -> Iterator[None]:
    """Work on a store that is there; what goes wrong since it is no more says so.

    Raises
    ------
    StoreError
        If it is not there, in place of whatever that led to.
    """
    check_present(store)
    try:
        yield
    except MmapError:
        raise
    except Exception:
        check_present(store)
        raise


def lost_slides(store: Place, slides: Iterable[str], encoder: str, mpps: Sequence[float]) -> dict[str, str]:
    """Of slides that were complete, those that are not any more, with the reason."""
    try:
        opened = FeatureStore.open(store)
    except StoreError as error:
        return dict.fromkeys(slides, str(error) if isinstance(error, RemoteError) else _gone(store))
    found = {}
    for name in slides:
        try:
            complete = opened.slide(name).complete(encoder) if opened.has_slide(name) else {}
        except DamagedSlideError as error:
            found[name] = str(error)
            continue
        missing = [mpp_key(mpp) for mpp in mpps if mpp not in complete or not complete[mpp].whole]
        if missing:
            found[name] = (
                f"{encoder} at {', '.join(missing)} um/px was removed from the store while this ran; run the"
                " same command again."
            )
    return found


@contextmanager
def staying(
    store: Place, slides: Sequence[str], encoder: str | Sequence[str], mpps: Sequence[float]
) -> Iterator[None]:
    """Refuse what a block makes of slides of a store that are removed meanwhile.

    Parameters
    ----------
    encoder
        Whose embeddings the block uses; one name, or several.

    Raises
    ------
    StoreError
        In place of whatever else went wrong for that reason.
    """

    def lost_meanwhile() -> dict[str, str]:
        encoders = [encoder] if isinstance(encoder, str) else encoder
        by_encoder = (lost_slides(store, slides, one, mpps) for one in encoders)
        return {slide: why for lost in by_encoder for slide, why in lost.items()}

    try:
        yield
    except StoppedError:
        raise
    except (MmapError, OSError, LookupError, ValueError, ArithmeticError) as error:
        lost = lost_meanwhile()
        if lost:
            raise StoreError(_sentence(lost)) from error
        raise
    lost = lost_meanwhile()
    if lost:
        raise StoreError(_sentence(lost))


def _gone(store: Place) -> str:
    return f"the store {store} was removed or moved while this ran; run the same command again."


def _sentence(lost: dict[str, str]) -> str:
    name, reason = next(iter(lost.items()))
    return f"slide {name}: {reason}"
