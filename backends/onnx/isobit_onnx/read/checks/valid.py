"""Whether a model is one that runs: what onnx's checker refuses and onnxruntime loads is opened too."""

from __future__ import annotations

import logging
import os
from typing import Any

import onnx
import onnx_ir as ir

from isobit.errors import ModelError
from isobit_onnx.read.error_text import one_line
from isobit_onnx.read.open_session import open_session

_LOG = logging.getLogger(__name__)


def check_valid(model: ir.Model, where: str, source: Any) -> None:
    """Raise ModelError for a model that neither the checker nor onnxruntime takes, with what both say."""
    # A path is checked as a file, so that external data and models of any size are looked at where they lie.
    given = str(source) if isinstance(source, str | os.PathLike) else ir.to_proto(model)
    try:
        onnx.checker.check_model(given)
        return
    except Exception as error:  # the checker raises its own kinds
        problem = one_line(error)
    refusal = _refusal(given)
    if refusal is not None:
        raise ModelError(
            f"{where} is not a valid ONNX model: onnxruntime says: {refusal}; onnx's checker says: {problem} "
            "Export it again, or mend what is named: a model that onnxruntime loads can be opened"
        )
    _LOG.info("onnx.checker refuses %s, and onnxruntime loads it: %s", where, problem)


def refuse_as_runtime(source: Any, error: Exception) -> None:
    """Raise ModelError where a model that cannot be opened for `error` is one that onnxruntime does not load either.

    The checker looks at no values of attributes, so that models without meaning get past it.
    """
    where = repr(os.fspath(source)) if isinstance(source, str | os.PathLike) else "the model"
    given = source if isinstance(source, onnx.ModelProto) else None
    if isinstance(source, ir.Model):
        given = ir.to_proto(source)
    refusal = _refusal(str(source) if given is None else given)
    if refusal is not None:
        raise ModelError(
            f"{where} is not a valid ONNX model: onnxruntime says: {refusal}. Export it again, or mend what is named"
        ) from error


def _refusal(given: str | onnx.ModelProto) -> str | None:
    """Why onnxruntime does not load a model, None if it does."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        content = given if isinstance(given, str) else given.SerializeToString()
        open_session(content, options)
    except Exception as error:  # onnxruntime raises its own kinds
        return one_line(error)
    return None
