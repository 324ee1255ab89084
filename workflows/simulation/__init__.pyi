__all__ = [
    "SimulationSettings",
    "simulate_cohort",
]

from .cohort import SimulationSettings, simulate_cohort
