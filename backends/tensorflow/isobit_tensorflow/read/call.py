"""What a rule is given: one call of a Keras layer or operation, and the reader that goes on from inside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from isobit.errors import ModelError
from isobit_tensorflow.read.emitter import Emitter, Value


class RuleReader(Protocol):
    """The reader as a rule sees it: where the nodes go, and how to read what a layer holds inside."""

    @property
    def emitter(self) -> Emitter:
        """Where the nodes go."""
        ...

    def name_of(self, part: Any) -> str:
        """The name of a layer or an operation, which depends on the model alone."""
        ...

    def apply(self, operation: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of one layer or operation on values."""
        ...

    def open(
        self, function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], owner: Any
    ) -> Any:
        """The result of a layer or function without a rule, by the operations that it is made of."""
        ...


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or operation: what it is, its name in the graph, and its arguments with values in them."""

    reader: RuleReader
    operation: Any
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def emitter(self) -> Emitter:
        """Where the nodes go."""
        return self.reader.emitter

    @property
    def x(self) -> Value:
        """The first argument, which must be one tensor."""
        value = self.argument(0)
        if isinstance(value, Sequence) and len(value) == 1:
            value = value[0]
        if not isinstance(value, Value):
            raise ModelError(f"{self.name!r} ({type(self.operation).__name__}) takes one tensor, not {value!r}")
        return value

    def argument(self, index: int, default: Any = None) -> Any:
        """Argument `index` by its place or its name."""
        if index < len(self.args):
            return self.args[index]
        names = list(inspect.signature(self.operation.call).parameters)
        return self.kwargs.get(names[index], default) if index < len(names) else default

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting of the operation."""
        return getattr(self.operation, name, default)


#: The values that a call comes to, in the structure that Keras returns, or None: then the layer is opened.
Rule = Callable[[Call], Any]
