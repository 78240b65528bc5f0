"""Finds the packages; everything else is in pyproject.toml.

Its static form cannot both discover the packages and put python/localize where GNU Radio looks for it.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        "gnuradio.localize",
        "gnuradio.localize.radios",
        "localize_benchmarks",
        *find_packages("python", include=["localize_core", "localize_core.*"]),
        *find_packages("apps", include=["localize_apps", "localize_apps.*"]),
    ]
)
