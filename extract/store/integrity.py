"""Whether what a store holds is what was written: check sums of chunks, and digests of whole arrays.

Each chunk ends with its own check sum (Zarr's crc32c codec), which Zarr compares whenever it reads the chunk.
What no chunk can tell, that it is missing or another slide's, the published attributes do: a digest of each
array's description, and one of the check sums of all its chunks in order. A reader compares both once, which
takes four bytes of each chunk. Arrays that were written without check sums are digested by their content.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import StorePath

from mmap_st.errors import DamagedSlideError, first_line
from mmap_st.extract.store.storage import StoreBucket, StorePlace
from mmap_st.files import sha256_of_json

#: How every array of a store is compressed: the check sum comes last.
COMPRESSORS = (ZstdCodec(level=3), Crc32cCodec())
#: Attribute of a group with the digests of its arrays.
DIGESTS = "digests"
_CHECK_SUM_BYTES = 4
#: A damaged description may claim any number of chunks.
_MOST_CHUNKS = 10_000_000
#: What Zarr and its codecs raise where bytes or descriptions are damaged.
DAMAGE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError)

Digest = dict[str, str]


def digests_of(group: zarr.Group, names: Sequence[str]) -> dict[str, Digest]:
    """The digests of a group's arrays, to be published with it."""
    return {name: _digest(group, name) for name in names}


def has_digests(group: zarr.Group) -> bool:
    """Whether a group was published with digests; those of earlier versions were not."""
    return DIGESTS in group.attrs


def check_array(group: zarr.Group, name: str) -> None:
    """Refuse an array of a published group whose digest differs from the published one.

    Compared once for each array of an open store; groups without digests are not checked.

    Raises
    ------
    StoreError
        If the array is damaged, incomplete or another one's.
    """
    folder, key = _folder(group), f"{group.path}/{name}"
    if key in folder.checked or (recorded := _published(group, name)) is None:
        return
    check_description(group, name)
    if _sha256_of_chunks(group, name) != recorded.get("chunks"):
        missing = next(_missing(group, name), None)
        what = f"its chunk {missing} is missing" if missing else "its chunks are not those that were written"
        raise damaged(group, name, what)
    folder.checked.add(key)


def check_description(group: zarr.Group, name: str) -> None:
    """The same of what describes an array, its shape and type, without a look at its chunks."""
    recorded = _published(group, name)
    if recorded is not None and _sha256_of_description(group, name) != recorded.get("zarr.json"):
        raise damaged(group, name, "its zarr.json is not the one that was written")


def _published(group: zarr.Group, name: str) -> Mapping[str, object] | None:
    """The digest of an array that was published with its group; None where there are none."""
    published = group.attrs.get(DIGESTS)
    if published is None or group.attrs.get("complete") is not True:
        return None
    recorded = published.get(name) if isinstance(published, Mapping) else None
    if not isinstance(recorded, Mapping):
        raise damaged(group, name, "it was published without a digest of it")
    return recorded


def read_checked(group: zarr.Group, name: str, read: Callable[[], Any]) -> Any:
    """Read from an array; what Zarr says of a damaged chunk becomes one sentence.

    Raises
    ------
    StoreError
        If a chunk cannot be read as it was written.
    """
    try:
        return read()
    except DAMAGE as error:
        raise damaged(group, name, f"{type(error).__name__}: {first_line(error)}") from error


def damaged(group: zarr.Group, name: str, what: str) -> DamagedSlideError:
    """The error for an array that is not as it was written."""
    return _damaged_in(_folder(group), f"{group.path}/{name}", what)


def _damaged_in(place: StorePlace, key: str, what: str) -> DamagedSlideError:
    return DamagedSlideError(f"{place.root / key} is damaged ({what})", place.advice)


def damaged_chunks(group: zarr.Group, names: Sequence[str], chunks: Sequence[int]) -> set[int]:
    """Which of some chunks cannot be read as they were written, in any of a group's arrays.

    Every chunk is read whole. A chunk that is not there counts as damaged, unless the array was written by a
    version that left out chunks without content.

    Parameters
    ----------
    names
        Arrays whose chunks hold the same rows.
    chunks
        Numbers of chunks along the first axis.

    Raises
    ------
    StoreError
        If an array as a whole is not as it was written, so that no chunk of it counts.
    """
    found: set[int] = set()
    for name in names:
        array = opened(group, name)
        rows = _sizes(array)[0]
        absent = set(_missing(group, name)) if _has_check_sums(array) else set()
        for index in chunks:
            if absent and any(key in absent for key in _keys_in(array, index)):
                found.add(index)
                continue
            try:
                array[index * rows : (index + 1) * rows]
            except DAMAGE:
                found.add(index)
    return found


def _digest(group: zarr.Group, name: str) -> Digest:
    return {"zarr.json": _sha256_of_description(group, name), "chunks": _sha256_of_chunks(group, name)}


def _sha256_of_description(group: zarr.Group, name: str) -> str:
    """Of what the file says, however it is laid out; what a version of Zarr makes of it does not matter."""
    found = _folder(group).bytes_of(f"{group.path}/{name}/zarr.json")
    try:
        return sha256_of_json(json.loads(found or b""))
    except (ValueError, RecursionError) as error:
        raise damaged(group, name, "its zarr.json cannot be read") from error


def _sha256_of_chunks(group: zarr.Group, name: str) -> str:
    """Of each chunk's key and check sum in order, or content where it has none; absent ones count too."""
    array, folder = opened(group, name), _folder(group)
    last = _CHECK_SUM_BYTES if _has_check_sums(array) else None
    total = hashlib.sha256()
    if isinstance(folder, StoreBucket):
        folder.read_ends(array.path, [f"{array.path}/{key}" for key in _keys_in(array)], last)
    for key in _keys_in(array):
        content = folder.bytes_of(f"{array.path}/{key}", last)
        part = "-" if content is None else content.hex() if last else hashlib.sha256(content).hexdigest()
        total.update(f"{key} {part}\n".encode())
    return total.hexdigest()


def _missing(group: zarr.Group, name: str) -> Iterator[str]:
    """Keys of chunks that are not there."""
    array, folder = opened(group, name), _folder(group)
    return (key for key in _keys_in(array) if folder.bytes_of(f"{array.path}/{key}", 1) is None)


def chunk_keys(group: zarr.Group, name: str) -> Iterator[str]:
    """Keys below an array of its chunks' files, in order, whether they are there or not."""
    return _keys_in(opened(group, name))


def _keys_in(array: zarr.Array[Any], first: int | None = None) -> Iterator[str]:
    """Keys of the files of an array's chunks (shards, where it has some): of all, or of one row of them."""
    sizes = _sizes(array)
    counts = [math.ceil(n / size) if size else 0 for n, size in zip(array.shape, sizes, strict=True)]
    if not 0 <= math.prod(counts) <= _MOST_CHUNKS:
        raise _damaged_in(_folder(array), array.path, f"it claims {math.prod(counts):,} chunks")
    ranges = [range(count) for count in counts]
    if first is not None:
        ranges[0] = range(first, first + 1)
    encode = array.metadata.encode_chunk_key
    return (encode(place) for place in itertools.product(*ranges))


def _sizes(array: zarr.Array[Any]) -> tuple[int, ...]:
    return tuple(array.shards or array.chunks)


def _has_check_sums(array: zarr.Array[Any]) -> bool:
    return bool(array.compressors) and isinstance(array.compressors[-1], Crc32cCodec)


def opened(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """A member that is an array, whatever it holds.

    Raises
    ------
    StoreError
        If it is missing, or Zarr cannot open it.
    """
    folder, path = _folder(group), f"{group.path}/{name}"
    content = folder.bytes_of(f"{path}/zarr.json")
    try:
        node = json.loads(content) if content is not None else None
        if node is not None and node["node_type"] == "array":
            # Not by the group, which would hand two coroutines to a thread of its own for each array.
            metadata = ArrayV3Metadata.from_dict(node)
            return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=StorePath(folder, path)))
    except (*DAMAGE, RecursionError) as error:
        raise damaged(group, name, f"{type(error).__name__}: {first_line(error)}") from error
    raise damaged(group, name, "it is missing")


def _folder(member: zarr.Group | zarr.Array[Any]) -> StorePlace:
    found = member.store
    assert isinstance(found, StorePlace)
    return found
