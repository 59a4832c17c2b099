"""The native kernels; everything else of the build is declared in `pyproject.toml`."""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

# No contraction to fused multiply-adds: a logged propensity is the same number on every processor.
kernels = Pybind11Extension(
    "bandit._native",
    ["bandit/native/module.cpp"],
    depends=sorted(map(str, Path("bandit/native").glob("*.hpp"))),
    cxx_std=17,
    extra_compile_args=["-O3", "-ffp-contract=off"],
)
setup(ext_modules=[kernels])
