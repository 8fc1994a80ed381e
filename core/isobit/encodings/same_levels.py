"""The same levels under another integer type: int8 with zero point 0 and uint8 with 128 are one grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import EncodingError


def same_levels(encoding: Encoding, spec: QuantSpec) -> Encoding | None:
    """`encoding` as a format `spec` says it, with exactly the same real values; None where that format has others.

    The granularity must be the same, or unsaid in `spec`.
    """
    old = encoding.spec
    new = spec if spec.granularity is not None or old.granularity is None else spec.with_granularity(old.granularity)
    if new == old:
        return encoding
    if new.granularity != old.granularity or not (new.is_integer and old.is_integer):
        return None
    if new.q_max - new.q_min != old.q_max - old.q_min:
        return None
    zero_point = encoding.zero_point.astype(np.int64) + (new.q_min - old.q_min)
    try:
        return replace(encoding, spec=new, zero_point=np.clip(zero_point, -(2**31), 2**31 - 1).astype(np.int32))
    except EncodingError:  # a symmetric format would need another zero point
        return None
