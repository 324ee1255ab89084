__all__ = [
    "IMAGE_FROM",
    "ExtractOptions",
    "PendingSlide",
    "PlanRequest",
    "Planned",
    "SlidePlan",
    "at_hand",
    "check_orientation",
    "check_run_recipe",
    "check_some_spots",
    "check_width",
    "has_spots",
    "image_fingerprint",
    "lacks_image",
    "origin",
    "place_spots_on",
    "plan_remote",
    "plan_slide",
    "run_recipe",
    "slides_of_shard",
    "stored_precision",
    "stored_tokens",
    "unchanged_slide",
    "usable_cores",
]

from .options import ExtractOptions, usable_cores
from .pending import IMAGE_FROM, PendingSlide, Planned, at_hand, origin, plan_remote, unchanged_slide
from .placement import check_orientation, check_some_spots, has_spots, lacks_image, place_spots_on
from .plan import (
    PlanRequest,
    SlidePlan,
    check_run_recipe,
    check_width,
    image_fingerprint,
    plan_slide,
    run_recipe,
    stored_precision,
    stored_tokens,
)
from .sharing_out import slides_of_shard
