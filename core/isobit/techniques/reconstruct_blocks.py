"""ReconstructBlocks: weights of several layers rounded together, by descent in the error of their block's output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from isobit.backend.checked_model import CheckedDifferentiable, CheckedModel
from isobit.data import Batch
from isobit.data.samples import SampleAxes
from isobit.edits.edit import AddBias, SetWeights
from isobit.errors import DataError, FormatError, ModelError
from isobit.graph.graph import Graph
from isobit.graph.sites import Site, Tensor
from isobit.statistics.observer import Request, Stage
from isobit.techniques.ada_round import AdaRound, ada_round
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.reconstruction.block_samples import BlockSamples, KeptSamples, choose_batches, held_back
from isobit.techniques.reconstruction.blocks import Block, find_blocks
from isobit.techniques.reconstruction.descent import Descent, Rounded, descend, error_of
from isobit.techniques.rounding.layers import Layer, can_absorb, find_layers
from isobit.techniques.rounding.procedure import Solved
from isobit.techniques.technique import TechniqueReport

#: Each so many samples one is held back, and says whether a descent has helped.
_EVERY = 8

#: A part that is computed from its inputs alone gives what the model does, but for this share of the power: float sums
#: in another order, which roundings to few levels make more of.
_SAME = 1e-2

#: The outputs of the model are compared on about so many samples of those.
_JUDGED = 64

#: The share of the memory for outputs of a block that is compared with itself.
_CHECKED = 64


@dataclass(frozen=True)
class ReconstructBlocks:
    """Round the weights of each block by gradients of the error of its output, from where `AdaRound` ends.

    A block is what lies between two tensors through which everything goes, such as a residual block or half of a
    transformer layer; layers in a row are taken `layers` at a time. One block after the other is rounded by
    `AdaRound(sequential=True)`, for what the blocks before it give now, and then descended in: on those inputs it is to
    give what the float block does on those of the float model. Each weight moves between two integers by the rectified
    sigmoid of AdaRound, with its scales and the biases; more and more of them settle, and the others make up for it.
    What is found so has to do better than AdaRound's weights, or these stay: at the output of the block and at those of
    the model, with float layers behind the block, on samples that were held back, each eighth.

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
                "the PyTorch or the Keras model, or use AdaRound(sequential=True), which needs none"
            )
        if context.dataset is None:
            raise DataError("ReconstructBlocks needs data, not what was observed of it alone: pass data=")
        context.require_passes(4)
        context.observe(Requests(ranges=True))  # of the model itself, and not of the copy
        base = context.model.copy()
        edits = len(base.edit_log)
        layers, _ = find_layers(base.graph, context.plan)
        _give_biases(base, layers)
        batches = choose_batches(context.dataset, context.graph, self.samples)
        run = _Run(context, self, base.graph, batches)
        run.find_blocks(layers)
        report = ada_round(self._first, context.on(base), run.refine)
        context.model.edit(base.edit_log[edits:])
        return run.report(report)


def _give_biases(model: CheckedModel, layers: Iterable[Layer]) -> None:
    """A bias of zeros where AdaRound would add one, so that the graph stays as it is from now on."""
    added: list[AddBias] = []
    for layer in layers:
        count = int(np.prod(layer.patches.matrix(model.weight(layer.weight)).shape[:2]))
        bare = [name for name in layer.readers if model.graph.node(name).input(2) is None]
        if all(can_absorb(model.graph, name) for name in layer.readers):
            added += [AddBias(name, np.zeros(count, np.float32)) for name in bare]
    if added:
        model.edit(added)


@dataclass(eq=False)
class _Run:
    """One application, on the graph in which every layer has a bias that can have one."""

    context: TechniqueContext
    settings: ReconstructBlocks
    graph: Graph
    batches: Sequence[Batch]
    changed: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.float_model = self.context.model.uncompensated()
        floats = [name for name, tensor in self.graph.outputs.items() if self.graph.is_float(tensor)]
        self.judged: list[tuple[Batch, Batch]] = []
        count, axes = 0, SampleAxes.of(self.graph)
        for batch in held_back(self.batches, self.graph, _EVERY):
            if count < _JUDGED:
                outputs = self.float_model.run(batch)
                self.judged.append((batch, {name: outputs[name] for name in floats}))
                count += axes.size([batch])
        self.rng = np.random.default_rng(self.settings.seed)
        self.size = axes.size(self.batches)

    def find_blocks(self, layers: Sequence[Layer]) -> None:
        self.blocks, self.left = find_blocks(self.graph, layers, self.settings.layers)
        self.waiting = list(self.blocks)
        self.layers = {layer.weight: layer.placement.site for layer in layers}

    def refine(self, model: CheckedModel, solved: Mapping[str, Solved]) -> dict[str, Solved]:
        """The layers of blocks of which all layers are solved, where gradients found better ones."""
        assert isinstance(model, CheckedDifferentiable)
        better: dict[str, Solved] = {}
        for block in [block for block in self.waiting if all(layer.weight in solved for layer in block.layers)]:
            self.waiting.remove(block)
            unsolved = [site for name, site in self.layers.items() if name not in solved]
            try:
                better |= self._reconstruct(block, model, solved, unsolved)
            except ModelError as error:  # a part that the backend cannot compute alone
                self.left |= {layer.weight: str(error) for layer in block.layers}
        return better

    def _reconstruct(
        self, block: Block, model: CheckedDifferentiable, solved: Mapping[str, Solved], unsolved: Sequence[Site]
    ) -> dict[str, Solved]:
        part, batch = block.part, self.settings.batch
        samples = self._samples(block, model)
        descended, judges = samples.split(_EVERY)
        if not len(descended) or not len(judges):
            raise ModelError(f"{len(samples)} samples of its input and output are too few: use more data")
        sites = {layer.weight: layer.placement.site for layer in block.layers}
        start = self._start(block, model, solved)
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
        if better:  # the layers behind it are still to be rounded: they are float ones in both
            there = model.encodings()
            off = [site for site in (*unsolved, *sites.values()) if site in there]
            model.enable(off, on=False)
            try:
                output_error = self._output_error(model)
                model.edit([SetWeights(new.constants)])
                moved = self._output_error(model)
            finally:
                model.edit([SetWeights(start.constants)])
                model.enable(off, on=True)
            told += f", of the model's outputs {output_error:.3g} -> {moved:.3g}"
            better = moved < output_error
        if not better:
            self.left |= {layer.weight: f"as AdaRound rounded it: {told}" for layer in block.layers}
            return {}
        self.changed.append(f"{block.name}, {len(block.layers)} weights: {told}")
        return {
            layer.weight: replace(
                solved[layer.weight],
                weight=new.weights[layer.weight],
                encoding=new.encodings[layer.weight],
                biases={
                    name: new.biases[bias]
                    for name in layer.readers
                    if (bias := self.graph.node(name).input(2) or "") in new.biases
                },
            )
            for layer in block.layers
        }

    def _output_error(self, model: CheckedModel) -> float:
        """The error of the quantized model's float outputs on samples that were held back, a share of their power."""
        error = power = 0.0
        for batch, wanted in self.judged:
            outputs = model.run(batch)
            for name, value in wanted.items():
                power += float(np.square(value, dtype=np.float64).sum())
                error += float(np.square(outputs[name] - value, dtype=np.float64).sum())
        return error / (power or 1.0)

    def _start(self, block: Block, model: CheckedModel, solved: Mapping[str, Solved]) -> Rounded:
        """What AdaRound made of the block's weights, and the biases that may move with them."""
        names = [name for layer in block.layers for name in layer.readers if can_absorb(self.graph, name)]
        biases = {bias: model.weight(bias) for name in names if (bias := self.graph.node(name).input(2)) is not None}
        encodings = {layer.weight: solved[layer.weight].encoding for layer in block.layers}
        return Rounded({name: solved[name].weight for name in encodings}, encodings, biases)

    def _samples(self, block: Block, model: CheckedDifferentiable) -> BlockSamples:
        """The inputs of a block in the quantized model, and its outputs in the float one."""
        part = block.part
        each = max(1, self.settings.memory // (len(part.inputs) + len(part.outputs)))
        wanted = self._observed(self.float_model, part.outputs, "before", each)
        both = [*part.inputs, *part.outputs]
        limits = [*([each] * len(part.inputs)), *([max(1, each // _CHECKED)] * len(part.outputs))]
        reducers = [KeptSamples(limit) for limit in limits]
        places = zip(both, reducers, strict=True)
        requests = [Request(Tensor(n), r, "before" if n in part.inputs else "after") for n, r in places]
        model.observe(self.batches, requests)
        given = dict(zip(part.inputs, reducers, strict=False))
        self._check(block, model, BlockSamples.of(given, dict(zip(part.outputs, reducers[len(given) :], strict=True))))
        return BlockSamples.of(given, wanted)

    def _observed(self, model: CheckedModel, names: Iterable[str], stage: Stage, each: int) -> dict[str, KeptSamples]:
        reducers = {name: KeptSamples(each) for name in names}
        model.observe(self.batches, [Request(Tensor(name), reducer, stage) for name, reducer in reducers.items()])
        return reducers

    def _check(self, block: Block, model: CheckedDifferentiable, samples: BlockSamples) -> None:
        """Raise ModelError where a block gives other values on samples alone: not everything follows axis 0."""
        numbers = next(iter(samples.alike), ())[: self.settings.batch]
        if not numbers:
            raise ModelError("its inputs and outputs hold different numbers of samples")
        given, wanted = samples.batch(numbers)
        error = model.part_error(block.part, {}, given, wanted)[0]
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
        return TechniqueReport("ReconstructBlocks", changed, {**first.left, **self.left}, first.encodings, tuple(notes))
