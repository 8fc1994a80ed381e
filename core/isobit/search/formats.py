"""The formats that a group of quantizers may get: read from the user's words, and checked against the target."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from isobit.encodings.quant_spec import FLOAT_BITS, PerTensor, QuantSpec
from isobit.errors import FormatError
from isobit.placement.plan import Placement
from isobit.quantsim.simulation import Simulation
from isobit.targets.target import Target

#: What is tried unless said, where the target has it; `float` is the plain float of the model.
USUAL = ("int8", "int16", "float")

_FLOAT = ("float", "float32")
_BITS = re.compile(r"u?int[0-9]+")


@dataclass(frozen=True)
class Candidate:
    """A format for a group: of its activations and of its weights; None is the float of the model."""

    name: str
    activations: QuantSpec | None
    weights: QuantSpec | None

    @property
    def is_float(self) -> bool:
        """Whether operations run in the model's own float."""
        return self.activations is None

    @property
    def activation_bits(self) -> int:
        """Bits of an activation."""
        return 32 if self.activations is None else self.activations.bits

    @property
    def weight_bits(self) -> int:
        """Bits of a weight."""
        return 32 if self.weights is None else self.weights.bits

    def spec(self, placement: Placement, least: int) -> QuantSpec | None:
        """The format of one site; None for float. What the plan gave more than `least` bits by rule keeps them."""
        wanted = self.activations if placement.kind in ("activation", "constant") else self.weights
        base = placement.spec
        if wanted is None or (base.is_integer and wanted.is_integer and wanted.bits < base.bits > least):
            return base if wanted is not None else None
        if not wanted.is_integer and wanted.bits == 16:
            return wanted.with_granularity(PerTensor())
        symmetric = base.symmetric if wanted.dtype == base.dtype else wanted.symmetric
        same = replace(wanted, symmetric=symmetric, strict=base.strict and wanted.dtype == base.dtype)
        return same if base.granularity is None else same.with_granularity(base.granularity)


def parse_candidates(simulation: Simulation, wanted: Iterable[str] | None) -> tuple[Candidate, ...]:
    """The formats by name, the narrowest first; those that are usual where `wanted` is None.

    Raises FormatError for one that the target cannot run, and where fewer than two are left to choose from.
    """
    target = simulation.target
    activations = target.activation_format(simulation.config.activations)
    weights = target.weights if simulation.config.weights is None else QuantSpec.parse(simulation.config.weights)
    found: dict[tuple[str, str], Candidate] = {}
    if wanted is None:  # what it has
        same = activations.bits == weights.bits
        name = (
            f"int{weights.bits}"
            if same and activations.is_integer
            else f"{activations.type_name} x {weights.type_name}"
        )
        own = Candidate(name, activations, weights)
        found[_types(own)] = own
    for name in USUAL if wanted is None else listed(wanted):
        try:
            candidate = _parse(name, target, activations, weights)
        except FormatError:
            if wanted is None:
                continue
            raise
        found.setdefault(_types(candidate), candidate)
    if len(found) < 2:
        there = ", ".join(candidate.name for candidate in found.values()) or "none"
        raise FormatError(
            f"mixed precision chooses among two formats at least, and target {target.name!r} leaves {there}: it runs "
            f"activations in {', '.join(target.activation_types)} and weights in {', '.join(target.weight_types)}"
        )
    return tuple(sorted(found.values(), key=lambda candidate: candidate.activation_bits * candidate.weight_bits))


def listed(wanted: Iterable[str]) -> tuple[str, ...]:
    """The names of formats. Raises FormatError for a single text."""
    if isinstance(wanted, str):
        raise FormatError(f"candidates is a list of formats, such as ['int8', 'int16', 'float'], not {wanted!r}")
    return tuple(wanted)


def _types(candidate: Candidate) -> tuple[str, str]:
    specs = (candidate.activations, candidate.weights)
    return tuple("float" if spec is None else spec.type_name for spec in specs)  # type: ignore[return-value]


def _parse(name: str, target: Target, activations: QuantSpec, weights: QuantSpec) -> Candidate:
    """``int16`` is 16 bits of the target's own kinds of integers; ``uint16 x int8`` says both as they are."""
    if not isinstance(name, str) or not name.strip():
        raise FormatError(f"a candidate is a text such as 'int16', 'uint16 x int8' or 'float', not {name!r}")
    text = name.strip().lower()
    if text in _FLOAT:
        return Candidate("float", None, None)
    first, times, second = text.partition(" x ")
    if times:
        return Candidate(
            text,
            target.activation_format(_of_type(first)),
            _weight(target, QuantSpec.parse(_of_type(second))),
        )
    if text in FLOAT_BITS or not _BITS.fullmatch(text):
        return Candidate(text, target.activation_format(text), _weight(target, QuantSpec.parse(text)))
    bits = QuantSpec.parse(text).bits
    return Candidate(
        f"int{bits}",
        target.activation_format(_with_bits(activations, bits, target.activation_types)),
        _weight(target, _with_bits(weights, bits, target.weight_types)),
    )


def _of_type(text: str) -> str:
    """A format without granularity: that is the plan's."""
    spec = QuantSpec.parse(text.strip())
    if spec.granularity is not None:
        raise FormatError(f"candidate {text!r}: granularities are the plan's; say the type alone, as {spec.type_name}")
    return text.strip()


def _with_bits(spec: QuantSpec, bits: int, types: Sequence[str]) -> QuantSpec:
    """The same kind of integer with other bits, or the other kind where the target has that alone."""
    kinds = [spec.dtype, "uint", "int"] if spec.is_integer else ["uint", "int"]
    kind = next((kind for kind in kinds if f"{kind}{bits}" in types), kinds[0])
    return QuantSpec(kind, bits, spec.symmetric if kind == spec.dtype else kind == "int")


def _weight(target: Target, spec: QuantSpec) -> QuantSpec:
    """The format without granularity, which is the plan's. Raises FormatError where the target cannot run it."""
    target.weight_format(spec, "")
    return spec
