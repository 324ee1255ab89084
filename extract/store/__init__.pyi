__all__ = [
    "BLOCK_BYTES",
    "RANDOM",
    "Embeddings",
    "FeatureStore",
    "Journal",
    "Magnification",
    "MagnificationRows",
    "MagnificationWriter",
    "Recipe",
    "RowIndex",
    "SlideInfo",
    "SlideLock",
    "StoredEmbeddings",
    "StoredRows",
    "StoredSlide",
    "StoredTokens",
    "check_encoder",
    "check_encoder_name",
    "check_same_recipe",
    "check_spots",
    "common_magnifications",
    "differences",
    "encode_name",
    "head_part",
    "imported_recipe",
    "is_imported",
    "is_nonempty",
    "journal_path",
    "list_contents",
    "mismatch_sentence",
    "row_blocks",
    "run_part",
    "sha256_of_spots",
    "slide_lock",
    "slide_part",
    "store_errors",
    "subgroup",
    "versions",
    "write_slide",
    "write_telemetry",
]

from .contents import list_contents
from .embeddings import (
    BLOCK_BYTES,
    Embeddings,
    RowIndex,
    StoredEmbeddings,
    StoredRows,
    StoredTokens,
    row_blocks,
)
from .journal import Journal, journal_path
from .lock import SlideLock, slide_lock
from .magnification import Magnification
from .names import check_encoder_name, encode_name
from .reader import (
    FeatureStore,
    SlideInfo,
    StoredSlide,
    check_encoder,
    check_same_recipe,
    common_magnifications,
    is_nonempty,
    store_errors,
    subgroup,
)
from .recipe import (
    RANDOM,
    Recipe,
    differences,
    head_part,
    imported_recipe,
    is_imported,
    run_part,
    sha256_of_spots,
    slide_part,
)
from .rows import MagnificationRows
from .writer import (
    MagnificationWriter,
    check_spots,
    mismatch_sentence,
    versions,
    write_slide,
    write_telemetry,
)
