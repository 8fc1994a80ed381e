"""The grammar of numeric formats."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.encodings import Lpbq, PerBlock, PerChannel, PerTensor, QuantSpec
from isobit.encodings.quant_spec import FLOAT_BITS
from isobit.errors import FormatError

granularities = st.one_of(
    st.none(),
    st.just(PerTensor()),
    st.just(PerChannel()),
    st.integers(1, 10**8).map(PerBlock),
    st.integers(1, 4096).map(Lpbq),
)


@st.composite
def specs(draw: st.DrawFn) -> QuantSpec:
    granularity = draw(granularities)
    dtype = draw(st.sampled_from(["int", "uint", *FLOAT_BITS]))
    if isinstance(granularity, Lpbq):
        return QuantSpec("int", draw(st.integers(2, 16)), True, draw(st.booleans()), granularity)
    if dtype in FLOAT_BITS:
        return QuantSpec(dtype, FLOAT_BITS[dtype], granularity=granularity)
    symmetric = draw(st.booleans())
    strict = symmetric and dtype == "int" and draw(st.booleans())
    return QuantSpec(dtype, draw(st.integers(2, 16) | st.just(32)), symmetric, strict, granularity)


@given(specs())
def test_what_is_written_reads_back_the_same(spec: QuantSpec) -> None:
    assert QuantSpec.parse(str(spec)) == spec
    assert QuantSpec.parse(spec) is spec


@given(specs(), st.randoms(use_true_random=False))
def test_words_come_in_any_order_case_and_spacing(spec: QuantSpec, random: object) -> None:
    first, *words = str(spec).split()
    random.shuffle(words)  # type: ignore[attr-defined]
    text = "  " + "   ".join([first, *words]).upper() + "\t"
    assert QuantSpec.parse(text) == spec


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("int8", "int8 symmetric"),
        ("uint8", "uint8 asymmetric"),
        ("int8 asymmetric", "int8 asymmetric"),
        ("uint8 symmetric", "uint8 symmetric"),
        ("int8 strict", "int8 strict"),
        ("int4 per-channel", "int4 symmetric per-channel"),
        ("int4 block=32", "int4 symmetric block=32"),
        ("int4 lpbq=64", "int4 symmetric lpbq=64"),
        ("float16", "float16"),
        ("float8e4m3 per-tensor", "float8e4m3 per-tensor"),
        ("int32", "int32 symmetric"),
    ],
)
def test_what_is_left_unsaid(text: str, full: str) -> None:
    assert str(QuantSpec.parse(text)) == full


@pytest.mark.parametrize(
    ("text", "q_min", "q_max"),
    [
        ("int8", -128, 127),
        ("int8 strict", -127, 127),
        ("uint8", 0, 255),
        ("uint8 symmetric", 0, 255),
        ("int2", -2, 1),
        ("int2 strict", -1, 1),
        ("uint16", 0, 65535),
        ("int32", -(2**31), 2**31 - 1),
        ("uint32", 0, 2**32 - 1),
    ],
)
def test_ends_of_the_grid(text: str, q_min: int, q_max: int) -> None:
    spec = QuantSpec.parse(text)
    assert (spec.q_min, spec.q_max) == (q_min, q_max)
    assert spec.is_integer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a numeric format is a text such as 'int8'"),
        ("   ", "a numeric format is a text"),
        (8, "not 8"),
        (None, "not None"),
        ("int9x", "unknown number type 'int9x' in 'int9x'"),
        ("unit8", "did you mean 'uint8'?"),
        ("flaot16", "did you mean 'float16'?"),
        ("int", "write intN or uintN with 2 to 16 bits"),
        ("int٨", "unknown number type"),  # an Arabic eight is a digit to Python
        ("int" + "9" * 5000, "unknown number type"),
        ("int1", "int1: integer formats have 2 to 16 bits"),
        ("uint17", "uint17: integer formats have 2 to 16 bits"),
        ("int64", "or 32 for bias"),
        ("int8 symmetric strict", "says its symmetry twice"),
        ("int8 asymmetric asymmetric", "says its symmetry twice"),
        ("int8 per-tensor per-channel", "says its granularity twice"),
        ("int8 block=4 block=4", "says its granularity twice"),
        ("float16 symmetric", "a float type has no zero point"),
        ("bfloat16 asymmetric", "a float type has no zero point"),
        ("uint8 strict", "strict symmetric drops the lowest level of a signed grid"),
        ("float8e4m3 strict", "a float type has no zero point"),
        ("int8 per-chanel", "unknown word 'per-chanel' in format 'int8 per-chanel' (did you mean 'per-channel'?)"),
        ("int4 block", "unknown word 'block'"),
        ("int4 block=", "unknown word 'block='"),
        ("int4 block=-1", "unknown word 'block=-1'"),
        ("int4 block=3.5", "unknown word"),
        ("int4 block=²", "unknown word"),
        ("int4 block=" + "9" * 5000, "unknown word"),
        ("int4 block=0", "block size must be at least 1, not 0"),
        ("int4 lpbq=0", "block size must be at least 1, not 0"),
        ("uint4 lpbq=8", "lpbq needs a symmetric integer type"),
        ("int4 asymmetric lpbq=8", "lpbq needs a symmetric integer type"),
        ("float16 lpbq=8", "lpbq needs a symmetric integer type"),
    ],
)
def test_what_is_wrong_is_said(text: object, message: str) -> None:
    with pytest.raises(FormatError, match=re.escape(message)):
        QuantSpec.parse(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "bits", "symmetric", "message"),
    [
        ("float16", 8, True, "unknown number type 'float16' of 8 bits"),
        ("double", 64, True, "unknown number type 'double'"),
        ("float16", 16, False, "float16 has no zero point"),
    ],
)
def test_impossible_specs_cannot_be_made(dtype: str, bits: int, symmetric: bool, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        QuantSpec(dtype, bits, symmetric)


@given(
    st.text(max_size=30) | st.lists(st.sampled_from("int8 u strict block= 4 lpbq=2 per-tensor".split())).map(" ".join)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        spec = QuantSpec.parse(text)
    except FormatError:
        return
    assert QuantSpec.parse(str(spec)) == spec


def test_another_granularity_changes_nothing_else() -> None:
    spec = QuantSpec.parse("int4 strict")
    assert spec.with_granularity(PerBlock(8)) == QuantSpec.parse("int4 strict block=8")
