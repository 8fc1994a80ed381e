"""What an edit changed for the sake of quantization alone, so that the float model can be had without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from isobit.edits.edit import Array


@dataclass(frozen=True, eq=False)
class Compensation:
    """The value of a constant before and after; before is None where the float model does not have the constant."""

    before: Array | None
    after: Array

    def without(self, current: Array) -> Array:
        """What a constant is without the compensation; training may have moved it on since."""
        before = np.zeros_like(self.after) if self.before is None else self.before
        return before if np.array_equal(current, self.after) else np.asarray(current - (self.after - before))

    def after_another(self, later: Compensation) -> Compensation:
        """This one and a later one of the same constant as one."""
        return Compensation(self.before, later.after)


def joined(earlier: Mapping[str, Compensation], later: Mapping[str, Compensation]) -> dict[str, Compensation]:
    """By constant, what two lists of edits come to together."""
    both = {name: earlier[name].after_another(later[name]) for name in earlier.keys() & later.keys()}
    return {**earlier, **later, **both}
