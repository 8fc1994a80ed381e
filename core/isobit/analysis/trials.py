"""Runs of the simulated model with single quantizers off, on, or changed, compared with the float model's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.analysis.findings import CAP, Advice
from isobit.analysis.site_errors import decibels
from isobit.analysis.tensor_noise import Floats
from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch
from isobit.data.samples import SampleAxes
from isobit.deadline import check_time
from isobit.edits.draft import Draft
from isobit.encodings.encoding import Encoding
from isobit.errors import ModelError
from isobit.graph.sites import Site
from isobit.placement.plan import constant_name
from isobit.quantsim.checks.parts import pairs_of_parts, worst_parts
from isobit.quantsim.checks.quality import sample_decibels
from isobit.quantsim.judging.evaluate import Evaluate, figures_of
from isobit.quantsim.judging.figures import Figures
from isobit.techniques.layers.weighted_layer import bias_of, set_bias

Outputs = Mapping[str, NDArray[Any]]

#: Noise of a sample, to that of the middle one, below which it tells nothing of what hurts.
_NEGLIGIBLE = 1e-6


class Trials:
    """A copy of the simulated model in which quantizers are tried; what was changed is put back after each run."""

    def __init__(self, model: CheckedModel, exact: CheckedModel, batches: Sequence[Batch]) -> None:
        self.model = model
        self.batches = batches
        self._float = exact
        self.exact: list[Outputs] = [exact.run(batch) for batch in batches]
        self.encodings: dict[Site, Encoding] = dict(model.encodings())
        self.outputs = self._run(model)
        self.noise = self.noise_of(self.outputs)

    @property
    def sqnr(self) -> float:
        """The ratio in dB with all quantizers as they are."""
        return decibels(1.0, self.noise)

    @property
    def samples(self) -> int:
        """The number of samples."""
        return SampleAxes.of(self.model.graph).size(self.batches)

    def by_output(self) -> dict[str, float]:
        """The ratio in dB of each float output, and of the parts of those that are put together, the worst dozen."""
        whole = {name: decibels(1.0, self.noise_of(self.outputs, name)) for name in self.names}
        samples: dict[str, dict[str, list[float]]] = {name: {} for name in self.names}
        for exact, other in zip(self.exact, self.outputs or (), strict=False):
            for name, pairs in pairs_of_parts(self.model.graph, exact, other):
                for part, (one, two) in pairs.items():
                    samples[name].setdefault(part, []).extend(sample_decibels({part: one}, {part: two}))
        parts = {
            name: {part: float(np.clip(ratios, -CAP, CAP).mean()) for part, ratios in found.items()}
            for name, found in samples.items()
        }
        return {**whole, **worst_parts(parts)}

    @property
    def names(self) -> list[str]:
        """The float outputs that hold something."""
        floats = [name for name, values in self.exact[0].items() if values.dtype.kind == "f"]
        return [name for name in floats if any(outputs[name].size for outputs in self.exact)]

    def noise_of(self, outputs: Sequence[Outputs] | None, output: str | None = None) -> float:
        """Energy of the error to that of the signal: the geometric mean over samples and float outputs.

        No sample decides alone. Ratios go from -100 to 100 dB; where the model does not run it is -100.
        """
        if outputs is None:
            return 10**10.0
        ratios = self._ratios(outputs, self.names if output is None else [output])
        mean = float(np.mean(ratios)) if ratios else CAP
        return 0.0 if mean == CAP else 10 ** (-mean / 10)

    def _ratios(self, outputs: Sequence[Outputs], names: Sequence[str]) -> list[float]:
        pairs = zip(self.exact, outputs, strict=True)
        return [ratio for exact, other in pairs for ratio in ratios_of_samples(exact, other, names)]

    def by_sample(self) -> Floats:
        """How much the noise of each sample counts where each counts alike in dB: one over its noise, mean 1.

        A sample with next to no noise has no say: what its inner tensors hold of noise never reached the output.
        """
        noise: Floats | None = None
        count = 0
        for name in self.names if self.outputs is not None else []:
            pairs = [(a[name], b[name]) for a, b in zip(self.exact, self.outputs or (), strict=True)]
            signal = float(np.concatenate([_energy(a) for a, _ in pairs]).mean())
            ratios = np.concatenate([_energy(a - b) if a.shape == b.shape else _energy(a) for a, b in pairs])
            if signal > 0 and (noise is None or ratios.size == noise.size):
                noise, count = ratios / signal + (0 if noise is None else noise), ratios.size
        if noise is None or not (heard := noise > 10 ** (-CAP / 10)).any():
            return np.ones(max(count, 1))
        heard &= noise > _NEGLIGIBLE * np.median(noise[heard])
        counts = np.divide(1.0, noise, out=np.zeros_like(noise), where=heard)
        return np.asarray(counts / counts.mean())

    @contextmanager
    def model_without(self, sites: Sequence[Site]) -> Iterator[CheckedModel]:
        """The model with these quantizers off, and without what made up for the rounding of their weights."""
        there = [site for site in sites if site in self.encodings]
        odd = self.compensated_alone(there)
        model = self.model
        if odd:
            model = self.model.copy()
            model.take_back(odd)
        model.enable(there, on=False)
        try:
            yield model
        finally:
            model.enable(there, on=True)

    def model_alone(self, sites: Sequence[Site]) -> AbstractContextManager[CheckedModel]:
        """The model with only these quantizers on."""
        kept = set(sites)
        return self.model_without([site for site in self.encodings if site not in kept])

    def without(self, sites: Sequence[Site]) -> float:
        """The noise with these quantizers off."""
        return self.without_these(sites)[0]

    def without_these(self, sites: Sequence[Site]) -> tuple[float, float]:
        """The noise with these quantizers off, and the standard error in dB of what that gains, as samples differ.

        Roundings behind a quantizer fall otherwise without it, which gains in some samples and loses in others.
        """
        with self.model_without(sites) as model:
            outputs = self._run(model)
        scatter = math.inf
        if outputs is not None and self.outputs is not None:
            pairs = (self._ratios(found, self.names) for found in (outputs, self.outputs))
            gains = [one - other for one, other in zip(*pairs, strict=False)]
            scatter = float(np.std(gains, ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.inf
        return self.noise_of(outputs), scatter

    def alone(self, sites: Sequence[Site]) -> float:
        """The noise with only these quantizers on."""
        with self.model_alone(sites) as model:
            return self.noise_of(self._run(model))

    def run_float(self, batch: Batch) -> Outputs:
        """The outputs of the float model."""
        return self._float.run(batch)

    def compensated_alone(self, off: Sequence[Site]) -> list[str]:
        """Biases that only make up for the rounding of weights whose quantizers are off."""
        graph = self.model.graph
        gone = {constant_name(graph, site) for site in off}
        uses = {name: graph.uses(name) for name in self.model.compensations if name in graph.weights}
        return [
            name
            for name, readers in uses.items()
            if readers and all(use.role == "bias" and use.node.input(1) in gone for use in readers)
        ]

    def changed(self, suggestions: Sequence[Advice]) -> float:
        """The noise with changes made."""
        encodings = {site: e for advice in suggestions for site, e in advice.encodings.items()}
        shifts = {layer: shift for advice in suggestions for layer, shift in advice.bias.items()}
        if not shifts:
            return self._with(self.model, encodings)
        copy = _with_biases(self.model, shifts)
        copy.set_quantizers(encodings)
        return self.noise_of(self._run(copy))

    def expected_without(self, shifts: Mapping[str, Floats]) -> float:
        """The noise that is expected once these shifts at the outputs of layers, which are there, are taken away.

        They are put into the float model: one run tells what each does at the outputs, with its sign and through
        whatever lies behind the layers, and that is taken from the errors that the outputs have.
        """
        moved = self._run(_with_biases(self._float, shifts))
        if moved is None or self.outputs is None:
            return self.noise
        expected = []
        for exact, other, outputs in zip(self.exact, moved, self.outputs, strict=True):
            if any(len({values[name].shape for values in (exact, other, outputs)}) > 1 for name in self.names):
                return self.noise  # sizes follow the values: nothing tells what belongs together
            with np.errstate(invalid="ignore"):  # infinities, as behind a mask, are compared by nobody
                expected.append({name: outputs[name] - (other[name] - exact[name]) for name in self.names})
        return self.noise_of(expected)

    def _with(self, model: CheckedModel, encodings: Mapping[Site, Encoding | None]) -> float:
        model.set_quantizers(encodings)
        try:
            return self.noise_of(self._run(model))
        finally:
            model.set_quantizers({site: self.encodings.get(site) for site in encodings})
            model.enable([site for site in encodings if site in self.encodings], on=True)

    def _run(self, model: CheckedModel) -> list[Outputs] | None:
        check_time()
        try:
            return [model.run(batch) for batch in self.batches]
        except ModelError:  # rounded numbers became sizes that do not fit
            return None


def _with_biases(model: CheckedModel, shifts: Mapping[str, Floats]) -> CheckedModel:
    """A copy in which the biases of these layers are moved."""
    copy = model.copy()
    draft = Draft(copy.graph, copy.weight)
    for name, shift in shifts.items():
        layer = draft.graph.node(name)
        set_bias(draft, layer, bias_of(draft, layer, shift.size) + shift, compensates=True)
    copy.edit(draft)
    return copy


def score(evaluate: Evaluate | None, model: CheckedModel) -> Figures | None:
    """What the user's own measure says of a model."""
    return None if evaluate is None else figures_of(evaluate, model)


def _energy(values: NDArray[Any]) -> Floats:
    """Of each sample."""
    finite = np.where(np.isfinite(values), values, 0).astype(np.float64)
    rows = finite if finite.ndim > 1 else finite.reshape(1, -1)
    return np.asarray(np.square(rows).sum(tuple(range(1, rows.ndim))))


def ratios_of_samples(exact: Outputs, other: Outputs, names: Sequence[str]) -> list[float]:
    """The decibels of each sample of a batch, from -100 to 100: the mean over these outputs, which err together.

    Where outputs have other numbers of samples all of them, one after the other.
    """
    by_output = [
        [min(max(ratio, -CAP), CAP) for ratio in sample_decibels({name: exact[name]}, other)] for name in names
    ]
    by_output = [ratios for ratios in by_output if ratios]
    if len({len(ratios) for ratios in by_output}) == 1:
        return [float(mean) for mean in np.mean(by_output, axis=0)]
    return [ratio for ratios in by_output for ratio in ratios]
