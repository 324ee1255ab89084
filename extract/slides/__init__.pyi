__all__ = [
    "FEWEST_SPOTS",
    "METHOD",
    "NO_TISSUE",
    "Finding",
    "GridRequest",
    "KnownMpp",
    "Slide",
    "SourceMpp",
    "Stage",
    "Tissue",
    "better_orientation",
    "better_shift",
    "choose_mpp",
    "close_ups",
    "default_stage",
    "fetched",
    "find_tissue",
    "free_memory",
    "grid_spots",
    "image_files",
    "inspect_image",
    "known_mpps",
    "local_image",
    "open_slide",
    "parse_grid",
    "resolve_source_mpp",
    "share_of_tissue",
    "share_on_tissue",
    "slide_files",
    "stage_of",
    "staged",
    "stored_grid",
    "thumbnail_of",
    "unreadable",
]

from .formats import free_memory
from .grid import (
    FEWEST_SPOTS,
    GridRequest,
    better_orientation,
    better_shift,
    grid_spots,
    parse_grid,
    stored_grid,
)
from .inspection import NO_TISSUE, Finding, inspect_image, unreadable
from .overview import close_ups, thumbnail_of
from .remote import default_stage, fetched, image_files, local_image
from .slide import (
    KnownMpp,
    Slide,
    SourceMpp,
    choose_mpp,
    known_mpps,
    open_slide,
    resolve_source_mpp,
    slide_files,
)
from .staging import Stage, stage_of, staged
from .tissue import METHOD, Tissue, find_tissue, share_of_tissue, share_on_tissue
