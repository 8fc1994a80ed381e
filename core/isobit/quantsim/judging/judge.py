"""The judge: how near the outputs of a quantized model are to those of the float model as it came, sample by sample.

Whatever is compared, schemes, steps of a recipe, corrections with and without, is compared by this one figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch
from isobit.data.joined import TOGETHER, Joining, Split
from isobit.encodings.encoding import Encodings
from isobit.errors import IsobitError, ModelError
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Tensor
from isobit.quantsim.checks.quality import Outputs, sample_decibels
from isobit.statistics.observer import Request

#: Decibels by which a later candidate must be better: last bits, in which frameworks differ, do not choose.
MARGIN = 0.1

#: One that is surely worse after a few batches is not run on the others: as surely as by so many standard errors of the
#: difference of many, from so many samples on where that is so many decibels as well, from so many batches on in any
#: case.
_HOPELESS, _ENOUGH, _STANDARD_ERRORS = 2.0, 4, 3.0

#: A step is kept for a gain of so many standard errors.
_CERTAIN = 1.5

#: Numbers of one sample of an output from which on it counts in full.
_TELLING = 8

#: From so many batches of one sample on they are run together.
_WORTH_JOINING = 8

#: Numbers of the errors of a sample that are kept of each output.
_KEPT_ERRORS = 1 << 14

#: Of so many models what was measured is remembered.
_REMEMBERED = 32

#: What ends a network and flattens large values: behind it, a sample that is decided says nothing of the others.
_LAST = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})

#: What values pass on their way out of the network, unchanged.
_MOVES = frozenset("Reshape Flatten Squeeze Unsqueeze Transpose Slice Gather Identity Cast Dropout".split())

#: The decibels of the samples of each batch.
Ratios = list[list[float]]


@dataclass(frozen=True, eq=False)
class Judge:
    """Samples, and what the float model computes for them.

    Where an output is that of a Softmax or Sigmoid, what goes into it is judged: logits tell more of errors than
    probabilities, most of which are next to 0 or 1.
    """

    samples: Sequence[tuple[Batch, Outputs]]
    is_of_outputs: bool = True
    _joined: JoinedSamples | None = None
    _known: list[tuple[str, Encodings, Ratios]] = field(default_factory=list)

    @classmethod
    def of(cls, model: CheckedModel, batches: Sequence[Batch]) -> Judge:
        """For a float model: one run of it."""
        outputs: list[Outputs] = []

        def take(exact: Outputs) -> bool:
            outputs.append(exact)
            return False

        _judged_outputs(model, batches, take)
        joined = _joined_samples(model, batches, outputs)
        return cls(list(zip(batches, outputs, strict=True)), not _flattened(model.graph), joined)

    def ratios(self, model: CheckedModel, rival: Ratios | None = None) -> Ratios:
        """The quality of the outputs of `model`; of a few samples where `rival` is far ahead.

        That of a model that fails on them is minus infinity.
        """
        ratios: Ratios = []

        def take(outputs: Outputs) -> bool:
            ratios.append(decibels_of_samples(self.samples[len(ratios)][1], outputs))
            return rival is not None and is_behind(ratios, rival)

        try:
            if self._joined is not None:
                _judged_outputs(model, self._joined.batches, self._joined.split_for(take))
            else:
                _judged_outputs(model, (batch for batch, _ in self.samples), take)
        except ModelError:  # rounded numbers became sizes that do not fit: `run` says so to who asks for it
            return [[float("-inf")]]
        return ratios

    def errors(self, model: CheckedModel) -> tuple[Ratios, list[NDArray[np.float32]]]:
        """The quality of the outputs of `model`, and its errors: of each batch a row a sample, of all outputs.

        The error of an output counts by what the float model has there. Of long rows elements at equal distances are
        kept. No errors where the model fails, or where the sizes of its outputs follow the values.
        """
        ratios: Ratios = []
        errors: list[NDArray[np.float32]] = []

        def take(outputs: Outputs) -> bool:
            exact = self.samples[len(ratios)][1]
            ratios.append(decibels_of_samples(exact, outputs))
            errors.append(_errors_of(exact, outputs))
            return False

        try:
            _judged_outputs(model, (batch for batch, _ in self.samples), take)
        except ModelError:
            return [[float("-inf")]], []
        return ratios, errors

    def known(self, state: str, encodings: Encodings, rival: Ratios | None) -> Ratios | None:
        """What was measured before of a model in this state with these quantizers, as far as it serves beside `rival`.

        Judging the last step of a recipe and choosing the scheme in the end compare the same models.
        """
        for known_state, known_encodings, ratios in reversed(self._known):
            if known_state == state and known_encodings == encodings:
                is_whole = len(ratios) == len(self.samples)
                return ratios if is_whole or (rival is not None and is_behind(ratios, rival)) else None
        return None

    def remember(self, state: str, encodings: Encodings, ratios: Ratios) -> None:
        """Keep what was measured, of the latest models."""
        self._known.append((state, encodings, ratios))
        del self._known[:-_REMEMBERED]


@dataclass(frozen=True, eq=False)
class JoinedSamples:
    """Batches of one sample each, several in one, of which the float model's outputs are those of each alone."""

    batches: Sequence[Batch]
    counts: Sequence[int]
    splits: Mapping[str, Split]

    def split_for(self, take: Callable[[Outputs], bool]) -> Callable[[Outputs], bool]:
        """Hands the outputs of each given batch to `take`, in order, until that says that it is enough."""
        counts = iter(self.counts)

        def take_each(outputs: Outputs) -> bool:
            count = next(counts)
            parts = {name: list(self.splits[name].parts(values, count)) for name, values in outputs.items()}
            return any(take({name: values[i] for name, values in parts.items()}) for i in range(count))

        return take_each


def _joined_samples(model: CheckedModel, batches: Sequence[Batch], outputs: Sequence[Outputs]) -> JoinedSamples | None:
    """None where the model cannot run the batches together, or gives other bits then."""
    joining = Joining.of(model.graph, batches[0]) if len(batches) >= _WORTH_JOINING else None
    if joining is None:
        return None
    starts = range(0, len(batches), TOGETHER)
    groups = [joining.join(batches[start : start + TOGETHER]) for start in starts]
    whole = [group for group in groups if group is not None]
    if len(whole) < len(groups):
        return None
    found: list[Outputs] = []

    def take(exact: Outputs) -> bool:
        found.append({name: np.array(values) for name, values in exact.items()})
        return False

    try:
        _judged_outputs(model, whole, take)
    except IsobitError:  # a size of one sample, in the model or in what its example decided
        return None
    splits: dict[str, Split] = {}
    for start, together in zip(starts, found, strict=True):
        alone = outputs[start : start + TOGETHER]
        for name, values in together.items():
            split = Split.of([each[name] for each in alone], values)
            if split is None or (len(alone) > 1 and splits.setdefault(name, split) != split):
                return None
    counts = [len(outputs[start : start + TOGETHER]) for start in starts]
    return JoinedSamples(whole, counts, splits)


def decibels_of_samples(exact: Outputs, other: Outputs) -> list[float]:
    """The decibels of each sample, over all outputs; one for the batch where outputs have other numbers of samples.

    The decibels of one number scatter by 10 about their mean, those of eight by 2: outputs of fewer count for less.
    """
    parts, weights = [], []
    for name, values in exact.items():
        part = sample_decibels({name: values}, other)
        if part:
            parts.append(part)
            weights.append(min(values.size // (len(values) if values.ndim > 1 else 1), _TELLING))
    if len(parts) < 2:
        return parts[0] if parts else []
    if len({len(part) for part in parts}) > 1:
        parts = [[float(np.mean(part))] for part in parts]
    return [float(value) for value in np.average(parts, axis=0, weights=weights)]


def _errors_of(exact: Outputs, other: Outputs) -> NDArray[np.float32]:
    """Errors of each sample, outputs one behind the other, each over the length of its values in float."""
    parts = []
    for name, values in exact.items():
        if values.dtype.kind != "f" or not values.size or values.ndim < 2 or other[name].shape != values.shape:
            continue
        signal = values.reshape(len(values), -1)
        rows = other[name].reshape(len(values), -1) - signal
        lengths = np.sqrt(np.square(np.nan_to_num(signal), dtype=np.float64).sum(axis=1, keepdims=True))
        step = -(-rows.shape[1] // _KEPT_ERRORS)
        rows = np.nan_to_num(rows[:, ::step], posinf=0.0, neginf=0.0) / np.where(lengths > 0, lengths, 1.0)
        parts.append(rows.astype(np.float32))
    if not parts or len({len(part) for part in parts}) > 1:
        return np.zeros((0, 0), np.float32)
    return np.concatenate(parts, axis=1)


def mean(ratios: Ratios) -> float:
    """The mean over all samples; 200 where no output can be compared."""
    values = [value for batch in ratios for value in batch]
    return float(np.mean(values)) if values else 200.0


def is_behind(ratios: Ratios, rival: Ratios) -> bool:
    """Whether outputs are so much worse than a rival's on the same first samples that the others need not be looked at.

    Candidates are compared as in a race (Maron and Moore, "Hoeffding races", NIPS 1993), with the errors of Student's
    t, for four values tell little of their own scatter. They are compared batch by batch: rows of one batch may be
    steps of one sequence, which err alike, and are counted as samples where the lead is large alone. One that
    `is_ahead` is never behind.
    """
    rivals = rival[: len(ratios)]
    if not math.isfinite(mean(ratios)):
        return mean(rivals) > mean(ratios)
    if [len(batch) for batch in rivals] != [len(batch) for batch in ratios]:  # one that fails has one value for all
        return False
    if not mean(rivals) > mean(ratios) + MARGIN:  # batches count alike below, and all samples here
        return False
    return any(
        lead.size >= _ENOUGH
        and float(lead.mean()) > max(least, _sure_errors(lead.size) * float(lead.std(ddof=1)) / math.sqrt(lead.size))
        for lead, least in zip(_leads(rivals, ratios), (_HOPELESS, MARGIN), strict=True)
    )


@cache
def _sure_errors(count: int) -> float:
    """How many standard errors of so many values are as sure as the standard errors of many are: 9 of four."""
    from scipy.special import ndtr, stdtrit  # takes a while to import

    return float(stdtrit(count - 1, ndtr(_STANDARD_ERRORS)))


def is_ahead(ratios: Ratios, rival: Ratios) -> bool:
    """Whether outputs are better than a rival's by more than the margin, on the samples that both were run on.

    One that was not run on all of them was behind: beside all of the rival's, few easy samples would look better.
    """
    common = min(len(ratios), len(rival))
    return mean(ratios[:common]) > mean(rival[:common]) + MARGIN


def is_better(now: Ratios, was: Ratios, by: float = 0.0) -> bool:
    """Whether outputs gained more than so many decibels, and more than samples drawn by chance would show.

    The mean gain is compared with one and a half times its standard error: a gain within that may well be none on new
    data, and of several steps one would seem to gain. Where there are batches enough, they are what is drawn, as in
    `is_behind`. One sample shows no error: what it gains must be more than the margin.
    """
    values = [value for batch in (*was, *now) for value in batch]
    if not values:
        return True  # no output is of floats, so nothing can be said against it
    if [len(batch) for batch in was] != [len(batch) for batch in now] or not np.all(np.isfinite(values)):
        return mean(now) > mean(was) + by
    gains, means = _leads(now, was)
    drawn = means if means.size >= _ENOUGH else gains
    error = float(drawn.std(ddof=1)) / math.sqrt(drawn.size) if drawn.size > 1 else MARGIN / _CERTAIN
    return float(gains.mean()) > max(by, _CERTAIN * error)


def _leads(ours: Ratios, theirs: Ratios) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By how many decibels the one are better, by sample and by batch; batches without floats are none."""
    leads = [np.subtract(one, other) for one, other in zip(ours, theirs, strict=True) if one]
    return np.concatenate([np.zeros(0), *leads]), np.array([float(lead.mean()) for lead in leads])


def _judged_outputs(model: CheckedModel, batches: Iterable[Batch], take: Callable[[Outputs], bool]) -> None:
    """Hand the outputs of a model, by name, batch by batch to `take`, which says whether that is enough.

    In place of the output of a last Softmax or Sigmoid stands what goes into it, as it is read.
    """
    graph = model.graph
    flattened = _flattened(graph)
    if not flattened:
        for batch in batches:
            if take(model.run(batch)):
                return
        return
    kept = {name: _Kept() for name, tensor in graph.outputs.items() if graph.is_float(tensor)}
    sites: dict[str, Tensor | Input] = {name: Tensor(graph.outputs[name]) for name in kept} | flattened
    requests = [Request(sites[name], observer, "after") for name, observer in kept.items()]

    def fed() -> Iterator[Batch]:
        for batch in batches:
            yield batch
            if take({name: observer.values for name, observer in kept.items()}):
                return

    model.observe(fed(), requests)


def _flattened(graph: Graph) -> dict[str, Input]:
    """Of the outputs that a Softmax or Sigmoid computes, and nothing else is computed from: what goes into it."""
    nodes = {name: _last(graph, tensor) for name, tensor in graph.outputs.items()}
    return {name: Input(node.name, 0) for name, node in nodes.items() if node is not None}


def _last(graph: Graph, tensor: str) -> Node | None:
    """The Softmax or Sigmoid whose values leave the network as `tensor`, reshaped, turned, picked or cast on the way.

    None where floats are computed from them, as from the weights of an attention; a class or a flag is no float.
    """
    behind: Node | None = None
    while True:
        readers = {use.node.name for use in graph.uses(tensor) if _computes_floats(graph, use.node)}
        node = graph.producer(tensor)
        if node is None or readers - ({behind.name} if behind else set()):
            return None
        if node.op in _LAST:
            return node if node.inputs[0] in graph.tensors else None
        source = node.input(0)
        if node.op not in _MOVES or source is None:
            return None
        tensor, behind = source, node


def _computes_floats(graph: Graph, node: Node) -> bool:
    return any(name in graph.tensors and graph.is_float(name) for name in node.outputs if name)


class _Kept:
    """Keeps the tensor of one batch."""

    wants: Literal["tensor"] = "tensor"

    def __init__(self) -> None:
        self.values: NDArray[Any] = np.zeros(0, np.float32)

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Keep a copy."""
        self.values = np.array(batch)
