__all__ = [
    "FAILED",
    "IN_FLIGHT",
    "SKIPPED",
    "STATES",
    "ActorPlan",
    "EncoderRequest",
    "ExtractOptions",
    "ExtractReport",
    "ExtractionStatus",
    "PreviewReport",
    "RayRequest",
    "check_encoder",
    "check_inside",
    "check_some_spots",
    "count_outside",
    "examine_machine",
    "extract_cohort",
    "extraction_status",
    "free_memory",
    "keep_freed_memory",
    "parse_engine",
    "parse_shard",
    "plan_actors",
    "preview_cohort",
    "stored_magnifications",
    "stored_width",
    "usable_cores",
    "width_sentence",
]

from .device import keep_freed_memory
from .encoder_request import EncoderRequest, check_encoder
from .extraction import ExtractReport, extract_cohort
from .machine import examine_machine
from .planning.options import ExtractOptions, free_memory, usable_cores
from .planning.placement import check_inside, check_some_spots, count_outside
from .planning.plan import stored_magnifications, stored_width, width_sentence
from .planning.sharing_out import parse_shard
from .preview import PreviewReport, preview_cohort
from .status import FAILED, IN_FLIGHT, SKIPPED, STATES, ExtractionStatus, extraction_status
from .workers.ray_request import ActorPlan, RayRequest, parse_engine, plan_actors
