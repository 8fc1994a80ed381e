"""Layers with LoRA (`enable_lora`): the frozen kernel, two small ones beside it, and their sum, one node each.

Keras adds the product of the small ones to the kernel. As layers of their own they train and stay in float beside a
kernel that is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isobit_tensorflow.read.call import Call
from isobit_tensorflow.read.emitter import Value

#: A layer by its name, what it reads, its kernel, and whether it has the bias.
Apply = Callable[[str, Value, Any, bool], Value]


def has_adapter(layer: Any) -> bool:
    """Whether `enable_lora` was called."""
    return bool(getattr(layer, "lora_enabled", False))


def with_adapter(call: Call, apply: Apply, up: Apply) -> Value:
    """What a layer makes of its input. `apply` is the layer with any kernel, `up` one that mixes channels alone."""
    layer, name, x = call.operation, call.name, call.x
    if not has_adapter(layer):
        return apply(name, x, layer.kernel, True)
    base = apply(f"{name}/base", x, layer._kernel, True)
    low = apply(f"{name}/lora_a", x, layer.lora_kernel_a, False)
    return add_change(call, base, up(f"{name}/lora_b", low, layer.lora_kernel_b, False))


def add_change(call: Call, base: Value, change: Value) -> Value:
    """What an adapter changes, by its factor, added to what the layer makes without it."""
    layer, e, name = call.operation, call.emitter, call.name
    factor = e.constant(f"{name}/lora_factor", layer.lora_alpha / layer.lora_rank)
    scaled = e.emit("Mul", f"{name}/lora_scaled", [change, factor], base.shape, base.dtype, base.last)
    return e.emit("Add", name, [base, scaled], base.shape, base.dtype, base.last)
