"""What a user names with --evaluate as a function of a model: a file with labels, or Python with a function."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.cli.quantizing.evaluation import Evaluator
from isobit.cli.user_data.calibration_files import load
from isobit.cli.user_data.data_files import DataFiles
from isobit.cli.user_data.image_options import ImageOptions
from isobit.data import Dataset
from isobit.errors import EvaluateError, IsobitError
from isobit.files import is_file
from isobit.graph.graph import Graph
from isobit.quantsim.judging.evaluate import CallableModel, Evaluate, check_evaluate
from isobit.quantsim.judging.figures import Figures

_MODULE = "isobit_user_evaluate"


@dataclass(frozen=True)
class TopOne:
    """Top-1 accuracy of each output that has labels, from 0 to 1; by the output's name where there are others."""

    files: DataFiles
    dataset: Dataset

    @property
    def digest(self) -> str:
        """A hash of the file, which labels are in always."""
        return _digest(self.files.path)

    def __call__(self, model: CallableModel) -> Figures:
        """Of a model."""
        with self.files.named():
            found = Evaluator.of(self.dataset, self.files.labels).accuracies(model)
        return found if len(model.outputs) > 1 else next(iter(found.values()))


@dataclass(frozen=True)
class OfFile:
    """The function of a Python file."""

    function: Evaluate
    path: Path

    @property
    def digest(self) -> str:
        """A hash of the file."""
        return _digest(self.path)

    def __call__(self, model: CallableModel) -> Figures:
        """Of a model."""
        return self.function(model)


def load_evaluate(path: Path, graph: Graph, images: ImageOptions, batch_size: int, ignore_non_finite: bool) -> Evaluate:
    """The function that a file stands for. Raises EvaluateError that says what the file lacks."""
    if path.suffix.lower() == ".py":
        return _function(path)
    files = load(path, graph, images, batch_size=batch_size)
    if not files.labels:
        raise EvaluateError(
            f"{path} holds no array 'label' or 'labels', so it says nothing of how good a model is: add the labels "
            "(label_NAME for those of an output NAME), name a .py with a function evaluate(model), "
            "which may return a figure for each output, or leave "
            "--evaluate out for agreement with the float model"
        )
    dataset = Dataset(files.source, graph, batch_size=batch_size, ignore_non_finite=ignore_non_finite)
    return TopOne(files, dataset)


def _function(path: Path) -> Evaluate:
    if not is_file(path):
        raise EvaluateError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise EvaluateError(f"{path} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # so that what is defined there finds its own module
    beside = str(path.resolve().parent)
    if beside not in sys.path:  # what stands beside it is found, as by `python file.py`, but shadows nothing
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except IsobitError:
        raise
    except (Exception, SystemExit) as error:  # a script that ends itself would end the command in silence
        raise EvaluateError(f"{path} fails with {type(error).__name__}: {error}") from error
    evaluate: Any = getattr(module, "evaluate", None)
    if evaluate is None:
        raise EvaluateError(
            f"{path} has no function evaluate: write `def evaluate(model)`, where model(batch) gives the outputs by "
            "name, and return a number, the higher the better, or a dict of such numbers"
        )
    check_evaluate(evaluate, picklable=False)
    return OfFile(evaluate, path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
