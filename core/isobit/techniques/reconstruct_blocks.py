"""ReconstructBlocks: weights of several layers rounded together, by descent in the error of their block's output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from isobit.backend.checked_model import CheckedDifferentiable, CheckedModel
from isobit.data import Batch
from isobit.data.samples import SampleAxes
from isobit.edits.edit import SetWeights
from isobit.encodings.encoding import Encoding
from isobit.errors import DataError, FormatError, ModelError
from isobit.graph.sites import Site, Tensor
from isobit.statistics.observer import Request, Stage
from isobit.techniques.ada_round import AdaRound
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.reconstruction.block_samples import Array, BlockSamples, KeptSamples, choose_batches
from isobit.techniques.reconstruction.blocks import Block, find_blocks
from isobit.techniques.reconstruction.descent import Descent, Rounded, descend, error_of
from isobit.techniques.rounding.layers import find_layers
from isobit.techniques.technique import TechniqueReport

#: Each so many samples one is held back, and says whether a descent has helped.
_EVERY = 8

#: A part that is computed from its inputs alone gives what the model does, but for this share of the power: float sums
#: in another order, which roundings to few levels make more of.
_SAME = 1e-2

#: The outputs of the whole model are compared on the first batches that hold so many samples.
_JUDGED = 64

#: The share of the memory for outputs that are compared for that.
_CHECKED = 64


@dataclass(frozen=True)
class ReconstructBlocks:
    """Round the weights of each block by gradients of the error of its output, from where `AdaRound` ends.

    A block is what lies between two tensors through which everything goes, such as a residual block or half of a
    transformer layer; layers in a row are taken `layers` at a time. On inputs as the quantized blocks before it give
    them it is to give what the float block does on those of the float model. Each weight moves between two integers by
    the rectified sigmoid of AdaRound, with its scales and the biases; a regulariser settles it. What is rounded so has
    to do better than AdaRound's weights, or these stay: the block on samples that were held back, each eighth, and the
    outputs of the model, whose layers behind the block were rounded for what AdaRound left there.

    It needs gradients, which the PyTorch and the Keras backend have (`isobit.backend.Differentiable`), and takes
    `steps` steps of `batch` samples for each block, chosen by `seed` from `samples` samples. `memory` bytes bound what
    is kept of a block's inputs and outputs. Many times slower than `AdaRound(sequential=True)`: for 2 and 3 bits, where
    each layer alone cannot make its errors good.

    Source: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021.
    """

    steps: int = 1000
    batch: int = 32
    samples: int = 1024
    layers: int = 3
    seed: int = 0
    memory: int = 1 << 29

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "samples", "layers", "memory"):
            if getattr(self, name) < 1:
                raise FormatError(f"{name} is at least 1, not {getattr(self, name)}")

    @property
    def uses_data(self) -> bool:
        """Always."""
        return True

    @property
    def rounds_weights(self) -> bool:
        """Always."""
        return True

    def requests(self, context: TechniqueContext) -> Requests:
        """What `AdaRound` asks for: samples of blocks are not known beforehand."""
        return self._first.requests(context)

    @property
    def _first(self) -> AdaRound:
        return AdaRound(sequential=True, memory=self.memory)

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Write rounded weights; needs data that serves several passes.

        Raises ModelError for a model of a backend without gradients.
        """
        if not isinstance(context.model, CheckedDifferentiable):
            raise ModelError(
                f"ReconstructBlocks needs gradients, and a model of the {context.model.backend} backend has none: open "
                "the PyTorch or Keras model, or use AdaRound(sequential=True), which needs none"
            )
        if context.dataset is None:
            raise DataError("ReconstructBlocks needs data, not what was observed of it alone: pass data=")
        context.require_passes(4)
        context.observe(Requests(ranges=True))  # of the model itself, and not of the copy
        rounded = context.model.copy()
        edits = len(rounded.edit_log)
        report = self._first.apply(context.on(rounded))
        run = _Run(
            context, self, rounded, report.encodings, choose_batches(context.dataset, context.graph, self.samples)
        )
        run.all_blocks()
        context.model.edit([*rounded.edit_log[edits:], *([SetWeights(run.values)] if run.values else [])])
        return run.report(report)


@dataclass(eq=False)
class _Run:
    """One application: `rounded` is the model with the weights of AdaRound, `quantized` has the quantizers too."""

    context: TechniqueContext
    settings: ReconstructBlocks
    rounded: CheckedModel
    encodings: Mapping[Site, Encoding]
    batches: Sequence[Batch]
    values: dict[str, Array] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.found = dict(self.encodings)
        self.float_model = self.context.model.uncompensated()
        self.quantized = self.rounded.copy()
        self.quantized.set_quantizers(self.context.encodings(self.rounded, self.found))
        graph = self.context.graph
        floats = [name for name, tensor in graph.outputs.items() if graph.is_float(tensor)]
        count, sizes = 0, SampleAxes.of(graph)
        self.judged: list[tuple[Batch, Batch]] = []
        for batch in self.batches:
            if count < _JUDGED:
                outputs = self.float_model.run(batch)
                self.judged.append((batch, {name: outputs[name] for name in floats}))
                count += sizes.size([batch])
        self.rng = np.random.default_rng(self.settings.seed)
        self.size = SampleAxes.of(self.context.graph).size(self.batches)

    def all_blocks(self) -> None:
        layers, _ = find_layers(self.rounded.graph, self.context.plan)
        self.blocks, self.left = find_blocks(self.rounded.graph, layers, self.settings.layers)
        for block in self.context.each(self.blocks, "blocks"):
            try:
                self._reconstruct(block)
            except ModelError as error:  # a part that the backend cannot compute alone
                self.left |= {layer.weight: str(error) for layer in block.layers}

    def _reconstruct(self, block: Block) -> None:
        assert isinstance(self.quantized, CheckedDifferentiable)
        model, part, batch = self.quantized, block.part, self.settings.batch
        samples = self._samples(block)
        descended, judges = samples.split(_EVERY)
        if not len(descended) or not len(judges):
            raise ModelError(f"{len(samples)} samples of its input and output are too few: use more data")
        sites = {layer.weight: layer.placement.site for layer in block.layers}
        start = self._start(block)
        floats = {layer.weight: self.float_model.weight(layer.weight) for layer in block.layers}
        model.enable(sites.values(), on=False)
        try:
            new = descend(model, part, floats, start, descended, Descent(self.settings.steps, batch), self.rng)
            before, after = (error_of(model, part, item.constants, judges, batch) for item in (start, new))
        finally:
            model.enable(sites.values(), on=True)
        power = judges.power or 1.0
        told = f"error of the block {before / power:.3g} -> {after / power:.3g} of its output's power"
        better = after < before
        if better:
            found, output_error = self.found, self._output_error()
            self._write(new.constants, {**found, **{site: new.encodings[name] for name, site in sites.items()}})
            moved = self._output_error()
            told += f", of the model's outputs {output_error:.3g} -> {moved:.3g}"
            better = moved < output_error
            if not better:  # the layers behind it were rounded for what AdaRound left here
                self._write(start.constants, found)
        if better:
            self.changed.append(f"{block.name}, {len(block.layers)} weights: {told}")
            self.values |= new.constants
        else:
            self.left |= {layer.weight: f"as AdaRound rounded it: {told}" for layer in block.layers}

    def _write(self, values: Mapping[str, Array], encodings: Mapping[Site, Encoding]) -> None:
        """Give the quantized model these weights and grids."""
        self.quantized.edit([SetWeights(values)])
        self.found = dict(encodings)
        self.quantized.set_quantizers(self.context.encodings(self.quantized, self.found))

    def _output_error(self) -> float:
        """The error of the quantized model's float outputs, as a share of their power, on some of the batches."""
        error = 0.0
        for batch, wanted in self.judged:
            outputs = self.quantized.run(batch)
            for name, value in wanted.items():
                power = float(np.square(value, dtype=np.float64).sum()) or 1.0
                error += float(np.square(outputs[name] - value, dtype=np.float64).sum()) / power
        return error / max(1, len(self.judged))

    def _start(self, block: Block) -> Rounded:
        """What AdaRound made of the block's weights, and the biases that may move with them."""
        graph = self.rounded.graph
        readers = [graph.node(name).input(2) or "" for layer in block.layers for name in layer.readers]
        biases = {
            name: self.rounded.weight(name)
            for name in readers
            if name in graph.weights
            and graph.weights[name].dtype == "float32"
            and len(graph.uses(name)) == 1
            and len(graph.source_readers(name)) == 1
        }
        weights = {layer.weight: self.rounded.weight(layer.weight) for layer in block.layers}
        return Rounded(weights, {layer.weight: self.found[layer.placement.site] for layer in block.layers}, biases)

    def _samples(self, block: Block) -> BlockSamples:
        """The inputs of a block in the quantized model, and its outputs in the float one."""
        part = block.part
        each = max(1, self.settings.memory // (len(part.inputs) + len(part.outputs)))
        wanted = self._observed(self.float_model, part.outputs, "before", each)
        both = [*part.inputs, *part.outputs]
        limits = [*([each] * len(part.inputs)), *([max(1, each // _CHECKED)] * len(part.outputs))]
        reducers = [KeptSamples(limit) for limit in limits]
        places = zip(both, reducers, strict=True)
        requests = [Request(Tensor(n), r, "before" if n in part.inputs else "after") for n, r in places]
        self.quantized.observe(self.batches, requests)
        given = dict(zip(part.inputs, reducers, strict=False))
        self._check(block, BlockSamples.of(given, dict(zip(part.outputs, reducers[len(given) :], strict=True))))
        return BlockSamples.of(given, wanted)

    def _observed(self, model: CheckedModel, names: Iterable[str], stage: Stage, each: int) -> dict[str, KeptSamples]:
        reducers = {name: KeptSamples(each) for name in names}
        model.observe(self.batches, [Request(Tensor(name), reducer, stage) for name, reducer in reducers.items()])
        return reducers

    def _check(self, block: Block, samples: BlockSamples) -> None:
        """Raise ModelError where a block gives other values on samples alone: not everything follows axis 0."""
        assert isinstance(self.quantized, CheckedDifferentiable)
        numbers = next(iter(samples.alike), ())[: self.settings.batch]
        if not numbers:
            raise ModelError("its inputs and outputs hold different numbers of samples")
        given, wanted = samples.batch(numbers)
        error = self.quantized.part_error(block.part, {}, given, wanted)[0]
        if error > _SAME * sum(float(np.square(value).sum()) for value in wanted.values()):
            raise ModelError("computed by itself, for some of the samples, the block gives other values")

    def report(self, first: TechniqueReport) -> TechniqueReport:
        """What was done, block by block."""
        done = {name for block in self.blocks for layer in block.layers for name in [layer.weight]} - self.left.keys()
        notes = [*first.notes]
        if self.blocks:
            drawn = self.settings.steps * self.settings.batch / max(1, self.size)
            notes.append(
                f"{len(self.blocks)} blocks, {len(done)} weights in those that were rounded anew; "
                f"{self.settings.steps} steps a block go through it as {drawn:.0f} passes over {self.size} samples "
                "would, forwards and backwards"
            )
        changed = (*self.changed, *first.changed)
        return TechniqueReport("ReconstructBlocks", changed, {**first.left, **self.left}, self.found, tuple(notes))
