"""Targets: what a runtime can do, read from a TOML file and checked key by key."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from isobit.encodings.quant_spec import FLOAT_BITS, Granularity, Lpbq, PerBlock, PerChannel, PerTensor, QuantSpec
from isobit.errors import FormatError, TargetError, TargetWarning, did_you_mean
from isobit.graph.vocabulary import VOCABULARY
from isobit.targets.convolution_costs import ConvolutionCosts, read_convolution_costs
from isobit.targets.costs import Costs, read_costs
from isobit.warn import warn

SCHEMA = 1

_TABLES: Mapping[str, Mapping[str, type]] = {
    "activations": {"default": str, "allowed": list},
    "weights": {"default": str, "allowed": list, "granularities": list, "per_channel_ops": list},
    "bias": {"format": str},
    "quantize": {"ops": list, "except": list},
    "ties": {"same": list, "joint": list},
}
_OPTIONAL: Mapping[str, Mapping[str, type]] = {
    "quantize": {"float_results": list, "weights_only": list},
    "activations": {"granularities": list},
}
_GRANULARITIES: Mapping[str, type[Any]] = {
    "per-tensor": PerTensor,
    "per-channel": PerChannel,
    "block": PerBlock,
    "lpbq": Lpbq,
}
_RANGE = re.compile(r"(u?int)([0-9]{1,4})\.\.([0-9]{1,4})")


@dataclass(frozen=True)
class FusionStep:
    """One place of a fusion pattern: any of `ops`, and whether it may be missing."""

    ops: frozenset[str]
    optional: bool = False


@dataclass(frozen=True)
class Target:
    """A runtime: its formats, which ops it runs quantized, and which it runs as one.

    An op of `float_results` can hand on what it computes without rounding it: only quantized readers need it on a grid.
    An op of `weights_only` runs in float on weights that are kept as integers, for their size alone.
    `costs` say, by processor, whether integers gain time: where they do not, an op stays in float. `convolutions` say
    it of thin convolutions.
    """

    name: str
    description: str
    activations: QuantSpec
    weights: QuantSpec
    activation_types: tuple[str, ...]
    weight_types: tuple[str, ...]
    weight_granularities: tuple[str, ...]
    per_channel_ops: frozenset[str]
    int32_bias: bool
    ops: frozenset[str]
    excluded_ops: frozenset[str]
    float_results: frozenset[str]
    weights_only: frozenset[str]
    fusions: tuple[tuple[FusionStep, ...], ...]
    same_encoding: frozenset[str]
    joint_encoding: frozenset[str]
    fixed_ranges: Mapping[str, tuple[float, float]]
    required_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    activation_granularities: tuple[str, ...] = ("per-tensor",)
    costs: tuple[Costs, ...] = ()
    convolutions: tuple[ConvolutionCosts, ...] = ()
    text: str = field(default="", repr=False, compare=False)  # the TOML it was read from

    def quantizes(self, op: str) -> bool:
        """Whether the target runs `op` on quantized values."""
        if "::" in op:  # an op outside the neutral vocabulary, of unknown meaning: "*" does not include it
            return op in self.ops
        return op not in self.excluded_ops and ("*" in self.ops or op in self.ops)

    def activation_format(self, requested: str | QuantSpec | None) -> QuantSpec:
        """The activation format asked for, or the default; FormatError if this target cannot run it."""
        spec = self.activations if requested is None else QuantSpec.parse(requested)
        if spec.type_name not in self.activation_types:
            self._refuse("activations", spec, self.activation_types)
        if spec.granularity is None:
            return spec.with_granularity(self.activations.granularity or PerTensor())
        if str(spec.granularity) not in self.activation_granularities:
            allowed = " or ".join(self.activation_granularities)
            raise FormatError(f"target {self.name!r} quantizes activations {allowed}, not {spec.granularity}")
        return spec

    def weight_format(self, requested: str | QuantSpec | None, op: str) -> QuantSpec:
        """The weight format asked for, or the default, for a weight of `op`; granularity is always set."""
        spec = self.weights if requested is None else QuantSpec.parse(requested)
        if spec.type_name not in self.weight_types:
            self._refuse("weights", spec, self.weight_types)
        if spec.granularity is None:
            default = self.weights.granularity or _unsized(self.weight_granularities[0])
            spec = spec.with_granularity(default if op in self.per_channel_ops else PerTensor())
        kind = next(name for name, cls in _GRANULARITIES.items() if isinstance(spec.granularity, cls))
        if kind not in self.weight_granularities:
            allowed = ", ".join(self.weight_granularities)
            text = f"target {self.name!r} cannot run weights {spec.granularity}; it runs: {allowed}{self._elsewhere}"
            raise FormatError(text)
        if spec.type_name in ("float16", "bfloat16"):
            return spec.with_granularity(PerTensor())
        return spec

    def _refuse(self, what: str, spec: QuantSpec, allowed: Sequence[str]) -> None:
        text = f"target {self.name!r} cannot run {what} of type {spec.type_name}; it runs: {', '.join(allowed)}"
        raise FormatError(text + self._elsewhere)

    @property
    def _elsewhere(self) -> str:
        """Advice for a format that this target lacks."""
        return (
            "" if self.name == "default" else "; for other hardware choose another target: 'default' runs all formats"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _unsized(name: str) -> Granularity:
    return PerChannel() if name == "per-channel" else PerTensor()


def load_target(path: Path) -> Target:
    """Read a target file. Raises TargetError naming the file, the table and the key."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise TargetError(f"cannot read target file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TargetError(f"cannot read target file {path}: it is not text in UTF-8") from error
    except ValueError as error:  # a path with a null byte
        raise TargetError(f"cannot read target file {str(path)!r}: {error}") from error
    return parse_target(text, str(path))


def parse_target(text: str, where: str) -> Target:
    """Read a target from TOML `text`; `where` names it in errors."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and a number of too many digits
        raise TargetError(f"{where}: not valid TOML: {error}") from error
    target = replace(_Reader(where).read(data), text=text)
    _warn_of_unknown_ops(target, where)
    return target


def _warn_of_unknown_ops(target: Target, where: str) -> None:
    """A misspelt op would leave every layer that it means in float; an op of another domain holds ``::``."""
    named = {
        "weights.per_channel_ops": target.per_channel_ops,
        "quantize.ops": target.ops - {"*"},
        "quantize.except": target.excluded_ops,
        "quantize.float_results": target.float_results,
        "quantize.weights_only": target.weights_only,
        "ties.same": target.same_encoding,
        "ties.joint": target.joint_encoding,
        "fixed_ranges": frozenset(target.fixed_ranges),
        "required_ranges": frozenset(target.required_ranges),
        "fusions": frozenset(op for fusion in target.fusions for step in fusion for op in step.ops),
        "costs": frozenset(op for table in target.costs for op in (*table.floats, *table.integers)),
        "convolutions": frozenset(op for table in target.convolutions for op in table.curves),
    }
    for key, ops in named.items():
        for op in sorted(ops - VOCABULARY):
            if "::" not in op:
                text = (
                    f"{where}: {key}: there is no operation {op!r}{did_you_mean(op, VOCABULARY)}: it reaches no layer"
                )
                warn(text, TargetWarning)


class _Reader:
    """Checks one target file; every error starts with the file and the key."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, key: str, problem: str) -> TargetError:
        return TargetError(f"{self.where}: {key}: {problem}")

    def read(self, data: Mapping[str, Any]) -> Target:
        allowed_keys = {
            "schema",
            "name",
            "description",
            "fusions",
            "fixed_ranges",
            "required_ranges",
            "costs",
            "convolutions",
            *_TABLES,
        }
        for key in data:
            if key not in allowed_keys:
                raise self.fail(
                    key, f"unknown key{did_you_mean(key, allowed_keys)}; known are {', '.join(sorted(allowed_keys))}"
                )
        if data.get("schema") != SCHEMA or isinstance(data["schema"], bool):
            found = repr(data["schema"]) if "schema" in data else "no such key"
            raise self.fail("schema", f"must be {SCHEMA}, found {found}: the file begins with 'schema = {SCHEMA}'")
        tables = {name: self.table(data, name, keys) for name, keys in _TABLES.items()}
        activations, weights = tables["activations"], tables["weights"]
        granularities = self.words(weights, "weights", "granularities")
        if not granularities:
            raise self.fail("weights.granularities", f"must name at least one of {', '.join(_GRANULARITIES)}")
        for word in granularities:
            if word not in _GRANULARITIES:
                raise self.fail("weights.granularities", f"unknown {word!r}; known are {', '.join(_GRANULARITIES)}")
        target = Target(
            name=self.text(data, "name"),
            description=self.text(data, "description"),
            activations=self.spec(activations["default"], "activations.default"),
            weights=self.spec(weights["default"], "weights.default"),
            activation_types=self.types(activations, "activations"),
            weight_types=self.types(weights, "weights"),
            weight_granularities=granularities,
            per_channel_ops=frozenset(self.words(weights, "weights", "per_channel_ops")),
            int32_bias=self.bias(tables["bias"]),
            ops=frozenset(self.words(tables["quantize"], "quantize", "ops")),
            excluded_ops=frozenset(self.words(tables["quantize"], "quantize", "except")),
            float_results=frozenset(self.words(tables["quantize"], "quantize", "float_results")),
            weights_only=frozenset(self.words(tables["quantize"], "quantize", "weights_only")),
            fusions=self.fusions(data.get("fusions", [])),
            same_encoding=frozenset(self.words(tables["ties"], "ties", "same")),
            joint_encoding=frozenset(self.words(tables["ties"], "ties", "joint")),
            fixed_ranges=self.ranges(data, "fixed_ranges"),
            required_ranges=self.ranges(data, "required_ranges"),
            activation_granularities=self.words(activations, "activations", "granularities") or ("per-tensor",),
            costs=read_costs(data.get("costs", []), self.where),
            convolutions=read_convolution_costs(data.get("convolutions", []), self.where),
        )
        for key, spec, known_types in (
            ("activations", target.activations, target.activation_types),
            ("weights", target.weights, target.weight_types),
        ):
            if spec.type_name not in known_types:
                raise self.fail(f"{key}.default", f"{spec.type_name} is not among {key}.allowed")
        for word in target.activation_granularities:
            if word not in ("per-tensor", "per-channel"):
                raise self.fail("activations.granularities", f"unknown {word!r}; known are per-tensor, per-channel")
        activation_granularity = target.activations.granularity
        if activation_granularity is not None and str(activation_granularity) not in target.activation_granularities:
            raise self.fail("activations.default", f"activations are quantized {target.activation_granularities[0]}")
        weight_granularity = target.weights.granularity
        if weight_granularity is not None and not any(
            isinstance(weight_granularity, _GRANULARITIES[word]) for word in granularities
        ):
            raise self.fail("weights.default", f"{weight_granularity} is not among weights.granularities")
        return target

    def table(self, data: Mapping[str, Any], name: str, keys: Mapping[str, type]) -> Mapping[str, Any]:
        table = data.get(name)
        if not isinstance(table, dict):
            raise self.fail(name, "this table is missing" if table is None else "must be a table")
        optional = _OPTIONAL.get(name, {})
        kinds = {**keys, **optional}
        for key in table:
            if key not in kinds:
                raise self.fail(f"{name}.{key}", f"unknown key{did_you_mean(key, kinds)}; known are {', '.join(kinds)}")
        for key, kind in kinds.items():
            if key not in table:
                if key in optional:
                    continue
                raise self.fail(f"{name}.{key}", "this key is missing")
            if not isinstance(table[key], kind):
                expected = "a text" if kind is str else "a list of texts"
                raise self.fail(f"{name}.{key}", f"must be {expected}, found {table[key]!r}")
        return table

    def text(self, data: Mapping[str, Any], key: str) -> str:
        value = data.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(key, "must be a text" if key in data else "this key is missing")
        return value

    def words(self, table: Mapping[str, Any], name: str, key: str) -> tuple[str, ...]:
        for word in table.get(key, ()):
            if not isinstance(word, str):
                raise self.fail(f"{name}.{key}", f"must be a list of texts, found {word!r}")
        return tuple(table.get(key, ()))

    def spec(self, text: str, key: str) -> QuantSpec:
        try:
            return QuantSpec.parse(text)
        except FormatError as error:
            raise self.fail(key, str(error)) from error

    def types(self, table: Mapping[str, Any], name: str) -> tuple[str, ...]:
        types: list[str] = []
        for word in self.words(table, name, "allowed"):
            match = _RANGE.fullmatch(word)
            if match and 2 <= int(match[2]) <= int(match[3]) <= 16:
                types += [f"{match[1]}{bits}" for bits in range(int(match[2]), int(match[3]) + 1)]
            elif word in FLOAT_BITS or (not match and self.spec(word, f"{name}.allowed").type_name == word):
                types.append(word)
            else:
                float_types = ", ".join(FLOAT_BITS)
                raise self.fail(f"{name}.allowed", f"{word!r} is no type: write int8, int2..16 or {float_types}")
        return tuple(types)

    def bias(self, table: Mapping[str, Any]) -> bool:
        if table["format"] not in ("int32", "float"):
            raise self.fail("bias.format", f"must be 'int32' or 'float', found {table['format']!r}")
        return bool(table["format"] == "int32")

    def fusions(self, data: Any) -> tuple[tuple[FusionStep, ...], ...]:
        fusions = []
        if not isinstance(data, list):
            raise self.fail("fusions", "must be tables written [[fusions]]")
        for index, entry in enumerate(data):
            key = f"fusions[{index}]"
            if not isinstance(entry, dict) or set(entry) != {"ops"} or not isinstance(entry["ops"], list):
                raise self.fail(key, 'must hold one key, ops = ["Conv", "BatchNormalization?", "Relu|Clip"]')
            steps = []
            for word in entry["ops"]:
                if not isinstance(word, str) or not word.strip("?"):
                    raise self.fail(f"{key}.ops", f"must be a list of op names, found {word!r}")
                steps.append(FusionStep(frozenset(word.removesuffix("?").split("|")), word.endswith("?")))
            if len(steps) < 2 or steps[0].optional:
                raise self.fail(f"{key}.ops", "needs at least two places, and the first cannot be optional")
            fusions.append(tuple(steps))
        return tuple(fusions)

    def ranges(self, data: Mapping[str, Any], key: str) -> Mapping[str, tuple[float, float]]:
        table = data.get(key, {})
        if not isinstance(table, dict):
            raise self.fail(key, "must be a table")
        ranges = {}
        for op, pair in table.items():
            numbers = isinstance(pair, list) and len(pair) == 2 and all(_is_number(v) for v in pair)
            if not numbers or not pair[0] < pair[1]:
                raise self.fail(f"{key}.{op}", f"must be [minimum, maximum], found {pair!r}")
            ranges[op] = (float(pair[0]), float(pair[1]))
        return ranges
