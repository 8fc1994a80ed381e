"""The user's own measure of a model: what it gets, and what it must return."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.data import Dataset
from isobit.errors import DataError, EvaluateError, IsobitError
from isobit.quantsim.judging.figures import Figures, checked_figures


class CallableModel:
    """What `evaluate` gets: called with a batch (array, tuple or dict of arrays), it returns the outputs by name."""

    def __init__(self, model: CheckedModel) -> None:
        self._model = model

    def __call__(self, batch: Any) -> dict[str, NDArray[Any]]:
        """The outputs of one batch. Raises EvaluateError for one that does not fit the model."""
        try:
            return self._model.run(next(iter(Dataset([batch], self._model.graph, ignore_non_finite=True))))
        except DataError as error:  # else it would be taken for a fault of the data of the call
            why = str(error).partition("; inputs=")[0].replace("batch 0", "it", 1)
            raise EvaluateError(f"evaluate calls the model with a batch that does not fit: {why}") from error

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(self._model.graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return tuple(self._model.graph.outputs)


Evaluate = Callable[[CallableModel], Figures]


def figures_of(evaluate: Evaluate, model: CheckedModel) -> Figures:
    """What `evaluate` says of a model. Raises EvaluateError where it fails, and for what is no number."""
    try:
        value = evaluate(CallableModel(model))
    except IsobitError:
        raise
    except (Exception, SystemExit) as error:  # what ends itself would end the search in silence
        what = "it gets one argument, a function from a batch to the outputs by name"
        if isinstance(error, OSError):
            what = f"paths in it start in the folder that this runs in, {Path.cwd()}"
        raise EvaluateError(f"evaluate failed with {type(error).__name__}: {error}; {what}") from error
    return checked_figures(value)


def check_evaluate(evaluate: Any, *, picklable: bool) -> None:
    """Raise EvaluateError for what cannot be called with a model, or not in another process."""
    if not callable(evaluate):
        raise EvaluateError(f"evaluate is a function of a model, which returns a number, not {evaluate!r}")
    name = getattr(evaluate, "__qualname__", type(evaluate).__name__)
    try:
        inspect.signature(evaluate).bind(None)
    except ValueError:  # a function in C says nothing of its arguments
        pass
    except TypeError as error:
        raise EvaluateError(
            f"{name} takes no model ({error}): write `def evaluate(model)`, where model(batch) gives the outputs by "
            "name"
        ) from error
    if picklable:
        try:
            pickle.dumps(evaluate)
        except Exception as error:
            raise EvaluateError(
                f"{name} cannot be sent to the workers of an executor ({error}): define it at the top of a module, and "
                "let it load its data there"
            ) from error


def identity_of(evaluate: Any) -> str:
    """A text that tells one measure from another: its name, and a hash of its code and of the numbers it is given.

    What is read from a file has an attribute `digest` of its own. What a function calls, objects that it is given, and
    the values that it closes over, are not in it.
    """
    name = getattr(evaluate, "__qualname__", type(evaluate).__qualname__)
    told = getattr(evaluate, "digest", None)
    if isinstance(told, str):
        return f"{name} {told}"
    given: list[Any] = []
    bare = evaluate
    while isinstance(bare, partial):
        given += [*bare.args, *sorted(bare.keywords.items())]
        bare = bare.func
    bare = inspect.unwrap(getattr(bare, "__func__", bare))  # that of a method, and what a decorator is around
    given += [
        *(getattr(bare, "__defaults__", None) or ()),
        *sorted((getattr(bare, "__kwdefaults__", None) or {}).items()),
    ]
    code = getattr(bare, "__code__", None) or getattr(type(bare).__call__, "__code__", None)
    if not isinstance(code, CodeType):
        return name
    text = f"{_code_text(code)} {[_given(value) for value in given]}"
    return f"{name} {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def _code_text(code: CodeType) -> str:
    """All that a function does, without the lines where it stands; the same in each process."""
    constants = [_code_text(item) if isinstance(item, CodeType) else _constant(item) for item in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_freevars} {constants}"


def _given(value: Any) -> str:
    """A number or a text as it is, and of anything else its kind: its text may be another one in each process."""
    if isinstance(value, tuple):
        return str([_given(item) for item in value])
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else type(value).__qualname__


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
