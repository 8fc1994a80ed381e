"""HuggingFace decoders: caches that they take or return become tuples of tensors, or are switched off."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from isobit.errors import ModelError
from isobit_torch.program.signature import Call, cache_tensors, is_cache


@dataclass(frozen=True)
class Caches:
    """What happens to caches: `taken` are those among the arguments, by name; where `is_off`, none is returned."""

    is_off: bool = False
    is_returned: bool = False
    taken: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, calls: Sequence[Call]) -> Caches:
        """Off where the calls neither give a cache nor ask for one. Raises ModelError for one of an unknown kind."""
        taken: dict[str, Any] = {}
        is_returned = False
        for call in calls:
            for name, value in call.by_name.items():
                if is_cache(value):
                    raise ModelError(
                        f"argument {name!r} is a {type(value).__name__}, which holds more than tensors: leave it out, "
                        "give a DynamicCache, or wrap the model in a module whose forward takes keys and values as "
                        "tensors and makes the cache from them"
                    )
            taken.update(call.caches)
            is_returned |= bool(taken) or call.by_name.get("use_cache") is True
        may_return = any(map(_has_cache_setting, module.modules()))
        return cls(not is_returned and may_return and _gives_cache(module, calls), is_returned, taken)

    def settle(self, module: nn.Module) -> None:
        """Switch the caches of a module, which is a copy, off, or let it take and return them as tuples of tensors."""
        if self.is_off:
            for part in filter(_has_cache_setting, module.modules()):
                part.__dict__["config"].use_cache = False
        if not self.is_returned:
            return
        plain = module.forward
        names = list(inspect.signature(plain).parameters)

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = [self._cache(name, value) for name, value in zip_longest(names[: len(args)], args)]
            outputs = plain(*given, **{name: self._cache(name, value) for name, value in kwargs.items()})
            return pytree.tree_map(_tensors, outputs)

        module.__dict__["forward"] = forward

    def _cache(self, name: str | None, value: Any) -> Any:
        """A cache like the one that was given, around these keys and values; any other value as it is."""
        template = self.taken.get(name or "")
        if template is None:
            return value
        cache = copy.copy(template)
        cache.layers = [copy.copy(layer) for layer in template.layers]
        for layer, (keys, values) in zip(cache.layers, value, strict=True):
            layer.keys, layer.values = keys, values
        return cache


def _tensors(value: Any) -> Any:
    """The tensors of a cache; of one of encoder and decoder, those of both."""
    parts = [getattr(value, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
    return tuple(map(cache_tensors, parts)) if is_cache(value) and all(parts) else cache_tensors(value)


def _gives_cache(module: nn.Module, calls: Sequence[Call]) -> bool:
    """Whether the outputs hold a cache: encoders have the setting of decoders too, and return none."""
    for call in calls:
        try:
            with torch.no_grad():
                outputs = module(*call.args, **call.kwargs)
        except Exception:  # the module's own code: another reading of the batch may fit it
            continue
        values = outputs.values() if isinstance(outputs, Mapping) else outputs
        return isinstance(values, Iterable) and any(map(is_cache, values))
    return True


def _has_cache_setting(module: nn.Module) -> bool:
    return getattr(module.__dict__.get("config"), "use_cache", None) is True
