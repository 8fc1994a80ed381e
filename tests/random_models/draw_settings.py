"""Random formats, recipes and targets: every combination that the documentation allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

_ACTIVATIONS = {
    "default": (
        "uint8 uint8 int8 int8 int8 uint16 int16 int6 int4 int4 uint4 uint6 int2 uint2 int7 int12 uint12 float16 "
        "bfloat16 float8e4m3 float8e5m2"
    ).split(),
    "onnxruntime-cpu": "uint8 uint8 int8 uint16 int16".split(),
    "onnxruntime-cpu-transformer": "uint8 uint8 int8 uint16 int16".split(),
}
_WEIGHTS = {
    "default": "int8 int8 int4 uint8 uint4 int2 int3 int6 int16 uint16 float16 bfloat16 float8e4m3 float8e5m2".split(),
    "onnxruntime-cpu": "int8 int8 uint8 int4 uint4 int16 uint16".split(),
    "onnxruntime-cpu-transformer": "int8 int8 int4".split(),
}
_METHODS = ("minmax", "minmax", "minmax", "mse", "percentile", "entropy", "sqnr")


@dataclass(frozen=True)
class Settings:
    """What is passed to `isobit.quantize`."""

    target: str = "default"
    recipe: str = "basic"
    method: str = "minmax"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def keywords(self) -> dict[str, Any]:
        """As keyword arguments."""
        return {"target": self.target, "recipe": self.recipe, "method": self.method, **self.options}

    def __str__(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.keywords.items())


def draw_settings(rng: np.random.Generator) -> Settings:
    """Settings that every model can be quantized with."""

    def one_of(choices: Any) -> str:
        return str(choices[int(rng.integers(len(choices)))])

    target = one_of(["default", "default", "default", "onnxruntime-cpu", "onnxruntime-cpu-transformer"])
    options: dict[str, Any] = {}
    if rng.random() < 0.75:
        options["activations"] = one_of(_ACTIVATIONS[target])
        integer = options["activations"].lstrip("u").startswith("int")
        if integer and rng.random() < 0.15:
            options["activations"] = options["activations"].lstrip("u") + " asymmetric"
        elif options["activations"].startswith("int") and rng.random() < 0.1:
            options["activations"] += " strict"
    if rng.random() < 0.6:
        weights = one_of(_WEIGHTS[target])
        if weights.lstrip("u").startswith("int"):
            words = ["", "", "per-tensor", "per-channel", "block=2", "block=4"]
            if target == "default" and weights.startswith("int"):
                words.append("lpbq=2")
            if target == "onnxruntime-cpu-transformer":
                words = words[:4]
            weights = f"{weights} {one_of(words)}".strip()
        options["weights"] = weights
    recipe = one_of(["basic", "basic", "basic", "ptq", "transformer"])
    method = one_of(_METHODS)
    if rng.random() < 0.3:  # less usual: any width and symmetry, and what takes more than one pass
        recipe = one_of([recipe, recipe, "fast"])
        method = one_of([method, "auto", "reader-error", "moving-average", "percentile=99.5"])
        if target == "default":
            options["activations"] = _any_format(rng)
            options["weights"] = f"{_any_format(rng)} {one_of(['', 'per-channel', 'per-tensor', 'block=2'])}".strip()
    return Settings(target, recipe, method, options)


def _any_format(rng: np.random.Generator) -> str:
    """An integer format of any width."""
    bits = int(rng.integers(2, 17))
    return str(rng.choice([f"int{bits}", f"int{bits} asymmetric", f"int{bits} strict", f"uint{bits}"]))
