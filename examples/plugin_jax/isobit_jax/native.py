"""JaxModel: what users hand over, and what they get back: a function and its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class JaxModel:
    """``function(params, **inputs)`` returns one array, a list or a dict of them; `params` is any pytree of arrays.

    A Flax module: ``JaxModel(lambda params, image: module.apply(params, image), params)``.
    """

    function: Callable[..., Any]
    params: Any

    def __call__(self, **inputs: Any) -> Any:
        """The outputs for inputs by name."""
        return self.function(self.params, **inputs)


def outputs_by_name(outputs: Any) -> Mapping[str, Any]:
    """Outputs by key, or ``output``, or ``output_0`` and so on."""
    if isinstance(outputs, Mapping):
        return outputs
    if isinstance(outputs, list | tuple):
        return {f"output_{index}": value for index, value in enumerate(outputs)}
    return {"output": outputs}
