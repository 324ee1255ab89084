"""Simulated cohorts: pictures and counts with known causes, written in a public layout."""

from mmap_st.workflows.simulation.cohort import SimulationSettings, simulate_cohort

__all__ = ["SimulationSettings", "simulate_cohort"]
