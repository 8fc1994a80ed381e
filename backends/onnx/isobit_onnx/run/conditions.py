"""Conditions of If, computed by onnxruntime: for an example when a model is opened, and for every batch after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from isobit.backend import Batch
from isobit.data import example_by_name
from isobit.errors import DataError
from isobit_onnx.read.open_session import open_session

#: A serialized model of conditions, and what each of its outputs was for the example.
Decided = tuple[bytes, dict[str, bool]]


class ExampleConditions:
    """What an example of the data decides, and whether a batch decides the same.

    `example` is a batch as users pass it: arrays by input, or in the order of the inputs; None where `decided` says
    what another one has decided. `decided` are models whose outputs are conditions, serialized, and their values.
    """

    def __init__(self, example: Any, decided: Iterable[Decided] = ()) -> None:
        self._example = example
        self.decided: list[Decided] = list(decided)
        self.batch: Batch | None = None  # the example by name, once it has decided something
        self._sessions: dict[bytes, Any] = {}

    def compute(self, model: ir.Model) -> Mapping[str, bool]:
        """The outputs of a model, conditions, for the example; nothing where it does not fit the model's inputs."""
        try:
            types = {value.name or "": value.dtype for value in model.graph.inputs}
            arrays = example_by_name(self._example, list(types))
            batch = {
                name: np.asarray(arrays[name], dtype.numpy() if dtype is not None else None)
                for name, dtype in types.items()
                if name in arrays
            }
            serialized = bytes(ir.to_proto(model).SerializeToString())
            found = _run(self._session(serialized), batch)
        except Exception:  # onnxruntime raises its own kinds; what is wrong with the example is said when it is run
            return {}
        if found:
            self.decided.append((serialized, found))
            self.batch = batch
        return found

    def broken_by(self, batch: Batch) -> str | None:
        """The first condition that is another one for a batch than for the example."""
        for serialized, expected in self.decided:
            for name, value in _run(self._session(serialized), batch).items():
                if value != expected[name]:
                    return f"{name!r} is {value}"
        return None

    def check(self, batch: Batch) -> None:
        """Raise DataError for a batch that takes other branches than the example."""
        broken = self.broken_by(batch)
        if broken is not None:
            raise DataError(
                f"this batch takes another branch of an If than the example with which the model was opened (its "
                f"condition {broken} here): the model holds the example's branch alone; open it once more with such "
                "data, as a model of its own"
            )

    def _session(self, serialized: bytes) -> Any:
        if serialized not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = open_session(serialized, options)
            self._sessions[serialized] = session
        return self._sessions[serialized]


def _run(session: Any, batch: Batch) -> dict[str, bool]:
    """Conditions by name; those of more or fewer elements than one are left out."""
    values = session.run(None, {entry.name: batch[entry.name] for entry in session.get_inputs()})
    names = [output.name for output in session.get_outputs()]
    return {name: bool(value.reshape(-1)[0]) for name, value in zip(names, values, strict=True) if value.size == 1}
