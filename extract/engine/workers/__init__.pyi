__all__ = [
    "Processes",
    "RayRequest",
    "WorkerEngine",
    "open_actors",
]

from .processes import Processes
from .ray_request import RayRequest
from .ray_workers import open_actors
from .worker_engine import WorkerEngine
