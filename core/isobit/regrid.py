"""The same levels under another integer type: int8 with zero point 0 and uint8 with 128 are one grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isobit.encoding import Encoding
from isobit.errors import EncodingError
from isobit.quant_spec import QuantSpec


def regrid(encoding: Encoding, spec: QuantSpec) -> Encoding | None:
    """`encoding` as a format `spec` says it, with exactly the same real values; None where that format has others.

    The granularity must be the same, or unsaid in `spec`.
    """
    own = encoding.spec
    wanted = spec if spec.granularity is not None or own.granularity is None else spec.with_granularity(own.granularity)
    if wanted == own:
        return encoding
    if wanted.granularity != own.granularity or not (wanted.is_integer and own.is_integer):
        return None
    if wanted.q_max - wanted.q_min != own.q_max - own.q_min:
        return None
    moved = encoding.zero_point.astype(np.int64) + (wanted.q_min - own.q_min)
    try:
        return replace(encoding, spec=wanted, zero_point=np.clip(moved, -(2**31), 2**31 - 1).astype(np.int32))
    except EncodingError:  # a symmetric format whose zero point is not where it would have to be
        return None
