"""The native kernels; everything else of the build is declared in `pyproject.toml`."""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

# One module a package that has any: packages do not import each other. No contraction to fused multiply-adds: a logged
# propensity is the same number on every processor.
kernels = [
    Pybind11Extension(
        f"{package}._native",
        [f"{package}/native/module.cpp"],
        depends=sorted(map(str, Path(package, "native").glob("*.hpp"))),
        cxx_std=17,
        extra_compile_args=["-O3", "-ffp-contract=off"],
    )
    for package in ("bandit", "retrieval")
]
setup(ext_modules=kernels)
