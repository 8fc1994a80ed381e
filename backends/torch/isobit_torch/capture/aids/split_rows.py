"""Rows that are split by counts, one part for each expert behind a sort: every part is computed for all rows.

How long a part is only the data knows. Where what follows computes each row by itself and concatenates the parts again,
all rows go through each of them, and the counts say which of the results a row keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

#: What tells one part of a split from others: the counts, and its place among them.
Part = tuple[Literal["part"], int, int]


class Counts:
    """Numbers that code took out of tensors one by one, and of which tensor they are all."""

    def __init__(self, *, is_tried: bool) -> None:
        """Unless `is_tried`, in a capture, numbers are symbols; what is an integer there is known without data."""
        self._is_tried = is_tried
        self._tensors: dict[int, torch.Tensor] = {}
        self._elements: dict[int, tuple[int, int]] = {}  # tensors of one number: of which counts, and which
        self._numbers: dict[int, tuple[int, int]] = {}  # the numbers themselves
        self._kept: list[Any] = []  # identities hold while the objects live

    def spread(self, counts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``counts.unbind()``, each element known by its place."""
        return tuple(self.element(counts, place) for place in range(counts.shape[0]))

    def element(self, counts: torch.Tensor, place: int) -> torch.Tensor:
        """``counts[place]``, known by its place."""
        self._tensors[id(counts)], found = counts, counts[place]
        self._kept.append(found)
        self._elements[id(found)] = (id(counts), place % counts.shape[0])
        return found

    def number(self, element: torch.Tensor) -> Any:
        """``element.item()``, of an element of counts; NotImplemented of others."""
        if id(element) not in self._elements:
            return NotImplemented
        found = element.item()
        if isinstance(found, int) and not self._is_tried:
            return found
        number = _Number(found) if isinstance(found, int) else found  # an int has no identity of its own
        self._kept.append(number)
        self._numbers[id(number)] = self._elements[id(element)]
        return number

    def of(self, sizes: Any) -> torch.Tensor | None:
        """The counts that sizes are, all of them in their order; None of other sizes."""
        if not isinstance(sizes, list | tuple) or not sizes or id(sizes[0]) not in self._numbers:
            return None
        whose, _ = self._numbers[id(sizes[0])]
        wanted = [(whose, place) for place in range(self._tensors[whose].shape[0])]
        return self._tensors[whose] if [self._numbers.get(id(size)) for size in sizes] == wanted else None

    def together(self, parts: Sequence[torch.Tensor], masks: Sequence[Sequence[Any]], kind: str) -> Any:
        """The rows of `parts`, each computed for all rows, as their concatenation has them.

        NotImplemented unless their `masks` say that they are all parts of one split, in order.
        """
        whose = masks[0][0][1] if masks and masks[0] else None
        if whose not in self._tensors:
            return NotImplemented
        counts = self._tensors[whose]
        if [list(one) for one in masks] != [[part(counts, place)] for place in range(counts.shape[0])]:
            return NotImplemented
        found, ends = parts[0], changed(counts, kind).cumsum(0)
        rows = torch.arange(found.shape[0], device=found.device).reshape(-1, *[1] * (found.ndim - 1))
        for place, other in enumerate(parts[1:]):
            found = torch.where(rows >= ends[place], other, found)
        return found


class _Number(int):
    """A number that is known by its identity."""


def part(counts: torch.Tensor, place: int) -> Part:
    """The part of a place."""
    return "part", id(counts), place


def are_counts(numbers: Any) -> bool:
    """Whether a tensor may hold the sizes of parts: integers on one axis of a fixed length."""
    return (
        isinstance(numbers, torch.Tensor)
        and numbers.ndim == 1
        and isinstance(numbers.shape[0], int)
        and not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)
    )


def changed(counts: torch.Tensor, kind: str) -> torch.Tensor:
    """Other counts of as many rows, for trying: in another order, even ones, or all rows in the last part."""
    if kind == "thinned":
        return counts.roll(1)
    rest = torch.zeros_like(counts) if kind == "none" else counts.sum().div(len(counts), rounding_mode="floor")
    even = rest.expand(len(counts)).clone()
    even[-1] += counts.sum() - even.sum()
    return counts if kind == "own" else even
