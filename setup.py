"""Packages of the wheel, found rather than listed: the repository root itself is the package ``mmap_st``."""

from setuptools import find_packages, setup

_NOT_INSTALLED = ("tests*", "benchmarks*", "docs*")

setup(
    packages=["mmap_st", *(f"mmap_st.{name}" for name in find_packages(exclude=_NOT_INSTALLED))],
    script_name="setup.py",  # or else this file would be a module of the package
)
