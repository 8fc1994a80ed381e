"""The triton kernel of fake quantization: one read, one write. Imported only where triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def fake_quantize_kernel(  # type: ignore[no-untyped-def]  # triton resolves annotations as code
    x_pointer,
    result_pointer,
    scale_pointer,
    zero_point_pointer,
    q_min,
    q_max,
    count,
    inner,
    scales,
    several: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """`isobit.arithmetic.fake_quantize` on `count` elements that lie side by side, for grids of at most 16 bits.

    The element at offset i has scale number ``i // inner % scales``; with `several` off there is one scale. The result
    may be written over the input. `wide` counts in int64. Why the bits are those of the reference:

    - `div_rn` is the IEEE division; triton's ``/`` on float32 is an approximate one.
    - Quotients are cut to 2^22 before they are rounded, which changes none that the grid does not cut: zero points and
      bounds have at most 16 bits. Adding 1.5 * 2^23 then puts the sum where float32 has a spacing of 1, so the addition
      itself rounds to an integer, ties to even (the constant is even); taking it away again is exact.
    - Everything from there to the last product is a small integer, and exact. No product is followed by a sum, so that
      contraction to fused multiply-add finds nothing to contract.
    - The difference of equal numbers is +0.0, so no -0.0 comes out.
    """
    start = tl.program_id(0)
    if wide:
        start = start.to(tl.int64)
    at = start * block + tl.arange(0, block)
    inside = at < count
    x = tl.load(x_pointer + at, mask=inside, other=0.0).to(tl.float32)
    if several:
        number = at // inner % scales
        scale = tl.load(scale_pointer + number, mask=inside, other=1.0)
        zero_point = tl.load(zero_point_pointer + number, mask=inside, other=0).to(tl.float32)
    else:
        scale = tl.broadcast_to(tl.load(scale_pointer), (block,))
        zero_point = tl.load(zero_point_pointer).to(tl.float32)
    steps = tl.div_rn(x, scale)
    steps = tl.minimum(tl.maximum(steps, -4194304.0), 4194304.0)
    steps = (steps + 12582912.0) - 12582912.0
    q = tl.minimum(tl.maximum(steps + zero_point, q_min), q_max)
    result = (q - zero_point) * scale
    tl.store(result_pointer + at, result.to(result_pointer.dtype.element_ty), mask=inside)
