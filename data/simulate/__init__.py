"""Simulated cohorts: pictures and counts with known causes, written in a public layout."""

from mmap_st.data.simulate.cohort import SimulationSettings, simulate_cohort

__all__ = ["SimulationSettings", "simulate_cohort"]
