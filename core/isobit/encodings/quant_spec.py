"""QuantSpec: a numeric format as a person says it, ``"int4 per-channel"``, parsed and printed in full.

The grammar is ``TYPE [symmetric|asymmetric|strict] [per-tensor|per-channel|block=N|lpbq=N]`` with words in any order
after the type. ``intN`` is symmetric and ``uintN`` asymmetric unless said; a granularity left unsaid is the target's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from isobit.errors import FormatError, did_you_mean

FLOAT_BITS = {"float16": 16, "bfloat16": 16, "float8e4m3": 8, "float8e5m2": 8}

_INTEGER = re.compile(r"(u?)int([0-9]{1,4})")
_WORDS = ("symmetric", "asymmetric", "strict", "per-tensor", "per-channel", "block=32", "lpbq=64")


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def __str__(self) -> str:
        return "per-tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale for each channel (the output channel of a weight)."""

    def __str__(self) -> str:
        return "per-channel"


@dataclass(frozen=True)
class PerBlock:
    """One scale for each run of `size` values along the input channels, in each output channel."""

    size: int

    def __str__(self) -> str:
        return f"block={self.size}"


@dataclass(frozen=True)
class Lpbq:
    """Low-power blockwise: integer block scales (1 to 2**bits) over one float scale for each output channel."""

    size: int

    def __str__(self) -> str:
        return f"lpbq={self.size}"


Granularity = PerTensor | PerChannel | PerBlock | Lpbq


@dataclass(frozen=True)
class QuantSpec:
    """A numeric format: type, width, symmetry and granularity. `granularity` None means the target's choice."""

    dtype: str  # "int", "uint", or one of FLOAT_BITS
    bits: int
    symmetric: bool = True
    strict: bool = False
    granularity: Granularity | None = None

    def __post_init__(self) -> None:
        if self.dtype in ("int", "uint"):
            if not (2 <= self.bits <= 16 or self.bits == 32):
                raise FormatError(f"{self.dtype}{self.bits}: integer formats have 2 to 16 bits, or 32 for bias")
        elif FLOAT_BITS.get(self.dtype) != self.bits:
            raise FormatError(f"unknown number type {self.dtype!r} of {self.bits} bits")
        elif not self.symmetric:
            raise FormatError(f"{self.dtype} has no zero point, so it cannot be asymmetric")
        if self.strict and not (self.symmetric and self.dtype == "int"):
            raise FormatError("strict symmetric drops the lowest level of a signed grid: say 'int8 strict'")
        if isinstance(self.granularity, PerBlock | Lpbq) and self.granularity.size < 1:
            raise FormatError(f"block size must be at least 1, not {self.granularity.size}")
        if isinstance(self.granularity, Lpbq) and not (self.dtype == "int" and self.symmetric):
            raise FormatError("lpbq needs a symmetric integer type, for example 'int4 lpbq=64'")

    @property
    def is_integer(self) -> bool:
        """Whether values are integers times a scale; if not, they are smaller floats."""
        return self.dtype in ("int", "uint")

    @property
    def type_name(self) -> str:
        """The type alone, ``"int8"`` or ``"float16"``."""
        return f"{self.dtype}{self.bits}" if self.is_integer else self.dtype

    @property
    def q_min(self) -> int:
        """The lowest integer of the grid."""
        if self.dtype == "uint":
            return 0
        return -(1 << (self.bits - 1)) + (1 if self.strict else 0)

    @property
    def q_max(self) -> int:
        """The highest integer of the grid."""
        return (1 << (self.bits if self.dtype == "uint" else self.bits - 1)) - 1

    def with_granularity(self, granularity: Granularity) -> QuantSpec:
        """The same type with another granularity."""
        return replace(self, granularity=granularity)

    @classmethod
    def parse(cls, text: str | QuantSpec) -> QuantSpec:
        """Read a format such as ``"uint8"``, ``"int4 block=32"`` or ``"int8 strict per-channel"``.

        Raises FormatError that names the word it does not know.
        """
        if isinstance(text, QuantSpec):
            return text
        if not isinstance(text, str) or not text.split():
            raise FormatError(f"a numeric format is a text such as 'int8' or 'int4 per-channel', not {text!r}")
        first, *words = text.lower().split()
        dtype, bits = _parse_type(first, text)
        symmetric: bool | None = None
        strict = False
        granularity: Granularity | None = None
        for word in words:
            if word in ("symmetric", "asymmetric", "strict"):
                if symmetric is not None:
                    raise FormatError(f"{text!r} says its symmetry twice")
                symmetric, strict = word != "asymmetric", word == "strict"
            else:
                if granularity is not None:
                    raise FormatError(f"{text!r} says its granularity twice")
                granularity = _parse_granularity(word, text)
        if symmetric is None:
            symmetric = dtype != "uint"
        elif dtype in FLOAT_BITS:
            raise FormatError(f"{text!r}: a float type has no zero point, so it is neither symmetric nor asymmetric")
        return cls(dtype, bits, symmetric, strict, granularity)

    def __str__(self) -> str:
        words = [self.type_name]
        if self.is_integer:
            words.append("strict" if self.strict else "symmetric" if self.symmetric else "asymmetric")
        if self.granularity is not None:
            words.append(str(self.granularity))
        return " ".join(words)


def _parse_type(word: str, text: str) -> tuple[str, int]:
    if word in FLOAT_BITS:
        return word, FLOAT_BITS[word]
    match = _INTEGER.fullmatch(word)
    if not match:
        type_names = ["int8", "uint8", "int16", "int4", *FLOAT_BITS]
        raise FormatError(
            f"unknown number type {word!r} in {text!r}{did_you_mean(word, type_names)}; "
            f"write intN or uintN with 2 to 16 bits, or one of {', '.join(FLOAT_BITS)}"
        )
    return match[1] + "int", int(match[2])


def _parse_granularity(word: str, text: str) -> Granularity:
    if word == "per-tensor":
        return PerTensor()
    if word == "per-channel":
        return PerChannel()
    name, _, size = word.partition("=")
    if name in ("block", "lpbq") and size.isascii() and size.isdigit() and len(size) < 10:
        return PerBlock(int(size)) if name == "block" else Lpbq(int(size))
    raise FormatError(
        f"unknown word {word!r} in format {text!r}{did_you_mean(word, _WORDS)}; "
        "known are symmetric, asymmetric, strict, per-tensor, per-channel, block=N and lpbq=N"
    )
