"""TorchModel: the contract of `isobit.backend.BackendModel` for PyTorch.

The float graph is the master. The simulator's graph is a copy of it with calls of quantizers, made anew when sites come
or go; parameters, buffers and quantizers stay the same objects, so that what the user holds stays valid.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from isobit.backend import Batch, KeptParts, NameMap
from isobit.edits import EditPlan, ReadWeight
from isobit.encodings import Encoding, Encodings, LearnedGrid, Relations
from isobit.errors import ModelError
from isobit.graph import Graph, Site
from isobit.statistics import Request
from isobit.training import DistillationSettings
from isobit_torch.capture.free_names import name_in_code
from isobit_torch.capture.given import Given
from isobit_torch.program import adapters as peft_adapters
from isobit_torch.program.convert import feed, to_array
from isobit_torch.program.modules import batches_seen, set_batches_seen
from isobit_torch.program.program import Program, copy_graph
from isobit_torch.program.shapes import propagate
from isobit_torch.simulate.float_state import FloatState, places_of
from isobit_torch.simulate.insert_quantizers import Simulated, insert_quantizers
from isobit_torch.simulate.passes.gradient import Derived, Values, gradient
from isobit_torch.simulate.passes.module_state import evaluating
from isobit_torch.simulate.passes.observe import ObservingRunner
from isobit_torch.simulate.passes.part_graph import PartGraph
from isobit_torch.simulate.quantizers import QUANTIZERS, Quantizer, WeightQuantizer
from isobit_torch.simulate.simulator import Simulator
from isobit_torch.simulate.teacher import Teacher, teacher_of
from isobit_torch.translate.sites import bind
from isobit_torch.translate.translate import Translation, translate

if TYPE_CHECKING:
    from onnx import ModelProto


class TorchModel:
    """An opened module."""

    backend = "torch"
    ops = None  # a call is copied whatever it is: the op alone does not decide
    failures = (RuntimeError, LookupError, TypeError, ValueError)

    def __init__(self, program: Program, peft: peft_adapters.PeftAdapters | None = None) -> None:
        self.program, self._peft = program, peft or peft_adapters.PeftAdapters()
        self.translation = translate(
            program.graph, program.root, program.inputs, program.signature.outputs, program.notes
        )
        self._opened = places_of(self.translation)
        self._keys: dict[Site, str] = {}
        self._relations = Relations()
        self.given: Given | None = None  # the user's module, where it was opened here
        self._native = Simulator(program.root, copy_graph(program.graph)[0], program.signature)
        self._native.eval()
        self._simulated: Simulated | None = None
        self._parts: KeptParts[PartGraph] = KeptParts()
        self._rebuild()

    @property
    def graph(self) -> Graph:
        """The neutral graph."""
        return self.translation.graph

    @property
    def native(self) -> Simulator:
        """The simulator: a module that takes and returns what the user's does."""
        return self._native

    def weight(self, name: str) -> NDArray[Any]:
        """A constant in canonical layout."""
        return self.translation.constant(name, self._native)

    # --- changing --------------------------------------------------------------------------------------------------

    def apply(self, plan: EditPlan) -> None:
        """Carry out edits, all or none."""
        from isobit_torch.translate.edit import apply_edits

        edited = apply_edits(self.program, self.translation, self._native, plan)
        edited.write(self._native)  # nothing was changed before this line
        if edited.program is self.program:
            self.translation = edited.translation
        else:
            self._take(edited.program, edited.translation)

    def _take(self, program: Program, translation: Translation) -> None:
        self.program, self.translation = program, translation
        for site in [site for site in self._keys if not self.graph.has_site(site)]:
            self._drop(site)
        self._rebuild()
        self._native.watch_anew()

    def fold_loaded(self, fold: Callable[[ReadWeight], Mapping[str, NDArray[Any]]]) -> None:
        """Let `load_state_dict` take in weights from before the edits through `fold`."""
        self._native.take_float_states(FloatState(fold, self._opened, places_of(self.translation)))

    def set_quantizers(self, encodings: Mapping[Site, Encoding | None]) -> None:
        """Insert, update or remove quantizers."""
        is_related = self._relations.touch(encodings.keys())
        if is_related:
            self._unlink()
        moved = False
        for site, encoding in encodings.items():
            known = site in self._keys
            if encoding is None:
                moved |= known
                self._drop(site)
            elif known:
                self._quantizer(site).set(encoding)
            else:
                self._add(site, encoding)
                moved = True
        if moved:
            self._rebuild()
        if is_related:
            self._link()
        self._native.watch_anew()

    def relate(self, relations: Relations) -> None:
        """Keep these relations, in training too, wherever the encodings have them."""
        self._unlink()
        self._relations = relations
        self._link()

    def _unlink(self) -> None:
        for quantizer in self._native.quantizers.values():
            quantizer.relate()

    def _link(self) -> None:
        held = self._relations.that_hold(self.encodings())
        for site in self._keys:
            related = (held.ties[site],) if site in held.ties else held.products.get(site, ())
            self._quantizer(site).relate(*(self._quantizer(other) for other in related))

    def learn(self, grids: Mapping[Site, LearnedGrid], sparse: Collection[Site] = ()) -> None:
        """Learn these grids from now on, and no others; zeros of the `sparse` weights stay."""
        for site in self._keys:
            quantizer = self._quantizer(site)
            quantizer.learn(grids.get(site))
            quantizer.keeps_zeros = site in sparse
        self._native.watch_anew()

    def train_in_float(self) -> None:
        """Let the simulator train without quantizers."""
        self._native.train_in_float()

    @property
    def batches_seen(self) -> Mapping[str, int]:
        """How many batches each batch norm has trained on."""
        return batches_seen(self._native)

    def set_batches_seen(self, counts: Mapping[str, int]) -> None:
        """Let batch norms go on counting from there."""
        set_batches_seen(self._native, counts)

    def learn_by(self, learn: Callable[[], object]) -> None:
        """What `learn_ranges` of the simulator calls."""
        self._native.learn_by(learn)

    @property
    def grid_parameters(self) -> list[nn.Parameter]:
        """The parameters of the grids that are learned."""
        return self._native.grid_parameters

    @property
    def weight_parameters(self) -> list[nn.Parameter]:
        """All other parameters that train."""
        return self._native.weight_parameters

    def enable(self, sites: Iterable[Site], on: bool) -> None:
        """Switch quantizers on or off; nothing is rebuilt."""
        for site in sites:
            self._quantizer(site).enabled = on

    @property
    def quantized(self) -> Collection[Site]:
        """The sites that have a quantizer, on or off."""
        return self._keys.keys()

    def encodings(self) -> Encodings:
        """The encodings of all quantizers, on or off, as the modules hold them now."""
        return Encodings({site: self._quantizer(site).encoding for site in self._keys})

    def disabled(self) -> list[Site]:
        """The sites whose quantizers are off."""
        return [site for site in self._keys if not self._quantizer(site).enabled]

    def _quantizer(self, site: Site) -> Quantizer:
        return self._native.quantizers[self._keys[site]]

    def _add(self, site: Site, encoding: Encoding) -> None:
        native = bind(self.translation, site)
        constant = native.source.op == "get_attr"
        made = WeightQuantizer(encoding, native.layout) if constant else Quantizer(encoding)
        made.to(self._native.device())
        made.train(self._native.training)
        taken = self._native.quantizers
        # `to`, `half` and `float` are methods
        key = name_in_code(re.sub(r"\W", "_", str(site)), lambda name: name in taken or hasattr(nn.Module, name))
        self._native.get_submodule(QUANTIZERS).add_module(key, made)
        self._keys[site] = key

    def _drop(self, site: Site) -> None:
        key = self._keys.pop(site, None)
        if key is not None:
            del self._native.get_submodule(QUANTIZERS)._modules[key]

    def _part_graph(self, part: Graph) -> PartGraph:
        assert self._simulated is not None
        return PartGraph(self._native, self._simulated, self.translation, part)

    def _rebuild(self) -> None:
        self._parts.clear()
        self._simulated = insert_quantizers(self.program.graph, self.translation, self._keys, self._native.quantizers)
        self._native.set_graph(self._simulated.graph, self.program.graph)

    def teacher(self, settings: DistillationSettings, values: Mapping[str, NDArray[Any]]) -> Teacher:
        """A loss by which the float model, as it is now, teaches the simulator."""
        program = self.program
        return teacher_of(self._native, program.graph, program.signature, self.translation, settings, values)

    # --- adapters --------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> Sequence[str]:
        """The names of all adapters of peft."""
        return peft_adapters.names_of(self._native) if self._peft.active else ()

    @property
    def adapter(self) -> str | None:
        """The one that the graph reads; several are joined by a plus."""
        return "+".join(self._peft.active) or None

    def use_adapter(self, name: str) -> None:
        """Let the graph read another one, whose weights train from now on."""
        old = self.program
        graph, factors = peft_adapters.exchanged(old.graph, self._native, self._peft, name)
        propagate(self._native, graph, old.inputs, old.symbols)
        program = replace(old, graph=graph)
        translation = translate(graph, self._native, old.inputs, old.signature.outputs, old.notes)
        peft_adapters.train_instead(self._native, self._peft.active[0], name)  # nothing was changed before this line
        peft_adapters.write_parameters(self._native, name, {}, factors)
        self._peft = replace(self._peft, active=(name,))
        self.given = None  # it has the other adapter in it
        self._take(program, translation)

    def adapter_constants(self, name: str) -> Mapping[str, str]:
        """The parameters of an adapter by their names in the graph, and their names in peft's file."""
        return peft_adapters.parameters_of(self._native, name)

    def adapter_weights(self, name: str) -> Mapping[str, NDArray[Any]]:
        """All parameters of an adapter by their names in peft's file."""
        paths = peft_adapters.parameters_of(self._native, name)
        return {key: np.array(to_array(self._native.get_parameter(path))) for path, key in paths.items()}

    def adapter_settings(self, name: str) -> Mapping[str, Any]:
        """The configuration of peft."""
        return self._peft.settings.get(name, {})

    def set_adapter_weights(self, name: str, weights: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> None:
        """New parameters, and the factors that follow from the settings."""
        peft = peft_adapters.with_settings(self._peft, self._native, name, settings)
        is_read = (name,) == peft.active
        factors = peft_adapters.factors_of(self.program.graph, peft, name) if is_read else {}
        peft_adapters.write_parameters(self._native, name, weights, factors)
        self._peft = peft
        self.given = None if is_read else self.given

    # --- running ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Outputs by name, in evaluation mode."""
        flat: Any = self._native.run_flat
        return self._outputs(self._evaluate(flat, batch))

    def run_given(self, batch: Batch, tensors: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Outputs of the user's own module, or of these parts of it. Raises ModelError."""
        if self.given is None or self._native.is_reloaded:
            raise ModelError("it is not at hand" if self.given is None else "other weights were loaded since")
        return {name: np.array(to_array(value)) for name, value in self.given.run(self._feeds(batch), tensors).items()}

    def _evaluate(
        self, function: Callable[..., Sequence[Any]], batch: Batch, inputs: Iterable[tuple[str, str]] | None = None
    ) -> Sequence[Any]:
        """Results of `function` for a batch of the model's inputs, or of these names and types in evaluation mode."""
        feeds = self._feeds(batch, inputs)
        if inputs is None and self.given is not None and not self._native.is_reloaded:
            self.given.refuse_other_ways(feeds)
        with evaluating(self._native):
            return function(*feeds.values())

    def _feeds(self, batch: Batch, inputs: Iterable[tuple[str, str]] | None = None) -> dict[str, torch.Tensor]:
        named = [(info.name, info.dtype) for info in self.program.inputs] if inputs is None else inputs
        return {name: feed(batch[name], dtype, self._native.device()) for name, dtype in named}

    def _outputs(self, flat: Sequence[Any]) -> dict[str, NDArray[Any]]:
        names = self.program.signature.outputs
        return {name: np.array(to_array(t)) for name, t in zip(names, flat, strict=True) if name is not None}

    def observe(self, data: Iterable[Batch], requests: Sequence[Request]) -> None:
        """Reduce the requested tensors as they are produced."""
        assert self._simulated is not None
        watched = self._simulated.watched(self.translation, requests)
        runner = ObservingRunner(self._native, self._simulated.graph, watched)
        for batch in data:
            self._evaluate(runner.observe, batch)
        runner.finish()

    def run_part(self, part: Graph, given: Batch) -> dict[str, NDArray[Any]]:
        """The tensors that the part makes, in front of their quantizers."""
        held = self._parts.of(part, self._part_graph)
        with evaluating(self._native):
            made = held.run(*self._feeds(given, held.inputs).values())
        return {name: np.array(to_array(tensor)) for name, tensor in made.items()}

    def gradient(self, function: Callable[[Mapping[str, Any]], Any], weights: Values, batch: Batch) -> Derived:
        """Value of ``function(outputs)`` with `weights` overridden, and its gradient by each of them."""
        assert self._simulated is not None
        runner = partial(gradient, self._native, self._simulated.graph, self.translation, weights)
        return runner(self._evaluate, batch, self.program.signature.outputs, function)

    def part_error(self, part: Graph, weights: Values, batch: Batch, wanted: Batch) -> Derived:
        """The squared error of a part's outputs, and its gradient by each of `weights`."""
        held = self._parts.of(part, self._part_graph)
        runner = partial(gradient, self._native, held.behind, self.translation, weights)
        return runner(
            partial(self._evaluate, inputs=held.inputs), batch, list(part.outputs), partial(held.error, wanted)
        )

    # --- exporting -------------------------------------------------------------------------------------------------

    def to_onnx(self) -> tuple[ModelProto, NameMap]:
        """The float model as ONNX, and where each tensor and weight of the graph is in it."""
        from isobit_torch.export.to_onnx import to_onnx

        return to_onnx(self.program, self.translation, self._native, self._keys)

    @property
    def native_formats(self) -> Mapping[str, str]:
        """PyTorch's own file formats, and the names of their files."""
        return {"pt2": "model.pt2", "torchscript": "model.torchscript.pt"}

    def write_native(self, form: str, encodings: Encodings, path: Path) -> list[str]:
        """Write one of `native_formats`; returns what the reader should know. Raises ModelError, nothing is changed."""
        from isobit_torch.export.pt2 import write_pt2
        from isobit_torch.export.torchscript import write_torchscript

        if form == "pt2":
            return write_pt2(self.program, self.translation, self._native, encodings, path)
        return write_torchscript(self.program, self._native, path)

    def copy(self) -> TorchModel:
        """An independent copy."""
        root = copy.deepcopy(self._native)
        root.__dict__["_modules"].pop(QUANTIZERS)
        program = self.program
        copied = TorchModel(
            Program(
                root, copy_graph(program.graph)[0], program.signature, program.inputs, program.symbols, program.notes
            ),
            self._peft,
        )
        copied.set_state(self.encodings(), self.disabled())
        copied.relate(self._relations)
        copied.given, copied._opened = self.given, self._opened
        copied.native.take_history(self._native)
        copied.native.train(self._native.training)
        return copied

    def set_state(self, encodings: Mapping[Site, Encoding], off: Iterable[Site]) -> None:
        """Take over the quantizers of another model of the same graph."""
        self.set_quantizers({**dict.fromkeys(list(self._keys)), **encodings})
        self.enable(off, on=False)

    def state(self) -> bytes:
        """Everything, as bytes."""
        from isobit_torch.export.state import dump

        return dump(self.program, self._native, self.encodings(), self.disabled())
