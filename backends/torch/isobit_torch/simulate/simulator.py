"""Simulator: what the user gets, runs, trains and saves. A GraphModule with the user's parameters under their names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from isobit.errors import ModelError
from isobit.training import left_grids_noticed
from isobit_torch.program.constants import factors
from isobit_torch.program.devices import device_of, follow
from isobit_torch.program.fx_nodes import attribute
from isobit_torch.program.modules import BatchNorm
from isobit_torch.program.program import copy_graph
from isobit_torch.program.signature import Signature
from isobit_torch.simulate.float_state import FloatState
from isobit_torch.simulate.insert_quantizers import quantized_weights
from isobit_torch.simulate.quantizers import QUANTIZERS, Quantizer
from isobit_torch.simulate.training_watch import TrainingWatch

_MODULE_STATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


class _UsersCall(CodeGen):
    """What lies between the user's call and the flat graph, for those that interpret it, as torch.export does."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.signature = signature

    def process_inputs(self, *args: Any) -> Any:
        """The flat tensors of a call by position."""
        return self.signature.flatten(args, {})

    def process_outputs(self, outputs: Any) -> Any:
        """The user's structure."""
        return self.signature.unflatten(outputs)


class Simulator(fx.GraphModule):
    """Takes and returns what the user's module does; `graph` works on the flat tensors behind that."""

    __jit_unused_properties__ = [  # noqa: RUF012
        *fx.GraphModule.__jit_unused_properties__,
        "quantizers",
        "is_reloaded",
        "grid_parameters",
        "weight_parameters",
    ]

    #: The Trainer of transformers takes a forward with keywords for one that divides its loss by summed steps itself,
    #: from 4.48 on unless this says otherwise.
    accepts_loss_kwargs = False

    def __init__(self, root: nn.Module, graph: fx.Graph, signature: Signature) -> None:
        empty = fx.Graph()
        empty.output(())
        super().__init__(nn.Module(), empty)
        for name in _MODULE_STATE:
            self.__dict__[name] = root.__dict__[name]
        self.__dict__["isobit_signature"] = signature
        self.__dict__["isobit_watch"] = self.__dict__["isobit_learn"] = None
        self.__dict__["isobit_is_float"] = self.__dict__["isobit_is_reloaded"] = False
        self.__dict__["isobit_float_state"] = None
        self.__dict__["isobit_keys"] = frozenset(self.state_dict())  # before any edit
        if QUANTIZERS not in self._modules:
            self.add_module(QUANTIZERS, nn.Module())
        self.set_graph(graph)

    def set_graph(self, graph: fx.Graph, *others: fx.Graph) -> None:
        """Compute by a copy of another graph from now on; parameters stay the same objects.

        `graph` and the `others` that it was made from move to other devices with the simulator.
        """
        self.__dict__["isobit_sources"] = (graph, *others)
        copied = copy_graph(graph)[0]
        copied.set_codegen(_UsersCall(self.__dict__["isobit_signature"]))
        self.graph = copied

    def _apply(self, fn: Any, recurse: bool = True) -> Simulator:
        """Move as any module does; what the user's code makes on the model's device, it makes on the new one."""
        before = self.device()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.device()
        if after != before:
            for graph in self.__dict__["isobit_sources"]:
                follow(graph, before, after)
            if follow(self.graph, before, after):
                self.recompile()
        return self

    def recompile(self) -> Any:
        """The generated function takes flat tensors; `forward` is the user's way to call it."""
        code = super().recompile()
        generated: Any = type(self)
        if "forward" in vars(generated):
            generated.run_flat = generated.forward
            del generated.forward
        return code

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The user's arguments and results."""
        signature: Signature = self.__dict__["isobit_signature"]
        run: Any = self.run_flat
        if not self.training or torch.compiler.is_compiling():
            return signature.unflatten(run(*signature.flatten(args, kwargs)))
        if torch.is_grad_enabled() and not self.quantizers and not self.__dict__["isobit_is_float"]:
            raise ModelError(
                "the simulator has no quantizers, so the float network would train: calibrate first, and again after a "
                "technique that has changed it"
            )
        watch: TrainingWatch | None = self.__dict__["isobit_watch"]
        if watch is None:
            watch = self.__dict__["isobit_watch"] = TrainingWatch(self.weight_parameters, self.grid_parameters)
        watch.before()
        flat = signature.flatten(args, kwargs)
        outputs = run(*flat)
        watch.after(self, flat, outputs)
        return signature.unflatten(outputs)

    def learn_ranges(self) -> Simulator:
        """``sim.trainable()`` for who holds the module alone: training moves the grids from now on; returns the module.

        Make the optimizer after it. Raises ModelError before calibration, and for a copy, which no `sim` belongs to.
        """
        learn: Callable[[], object] | None = self.__dict__["isobit_learn"]
        if learn is None:
            raise ModelError("no simulator belongs to this module, which is a copy: call sim.trainable() on its own")
        learn()
        return self

    def learn_by(self, learn: Callable[[], object]) -> None:
        """What `learn_ranges` calls. Copies of the module do not have it."""
        self.__dict__["isobit_learn"] = learn

    def freeze_batch_norms(self) -> None:
        """Normalise by the running statistics from now on, in training too, and leave them as they are.

        Folding does so at the end, so the last steps train what will run.
        """
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.is_frozen = True

    def take_float_states(self, how: FloatState) -> None:
        """Load weights of the user's module from before edits in this way from now on."""
        self.__dict__["isobit_float_state"] = how

    def take_history(self, other: Simulator) -> None:
        """Be what has become of the same module as another simulator is, of which this is a copy."""
        for name in ("isobit_keys", "isobit_is_reloaded", "isobit_float_state"):
            self.__dict__[name] = other.__dict__[name]

    def train_in_float(self) -> None:
        """Be a float model, made smaller for example, that trains without quantizers."""
        self.__dict__["isobit_is_float"] = True

    def watch_anew(self) -> None:
        """Look at passes of training as if none had been: what trains has changed."""
        self.__dict__["isobit_watch"] = None

    @property
    def is_reloaded(self) -> bool:
        """Whether it holds other weights than it was opened with, because some were loaded."""
        return bool(self.__dict__["isobit_is_reloaded"])

    @property
    def grid_parameters(self) -> list[nn.Parameter]:
        """The parameters of the grids that are learned."""
        return [p for q in self.quantizers.values() for p in q.parameters() if p.requires_grad]

    @property
    def weight_parameters(self) -> list[nn.Parameter]:
        """All other parameters that train."""
        grids = {id(parameter) for parameter in self.grid_parameters}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in grids]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module; weights of the float module are folded on the way in, where batch norms were folded.

        Grids stay as they are; where they fit the weights of a float module no more a `GridWarning` says so. Raises
        ModelError, also where `strict` is off, for weights from before another edit.
        """
        if any(key.startswith(f"{QUANTIZERS}.") for key in state_dict):
            return self._load(state_dict, strict, assign)
        with left_grids_noticed(partial(quantized_weights, self)):
            return self._load(state_dict, strict, assign)

    def _load(self, state_dict: Mapping[str, Any], strict: bool, assign: bool) -> Any:
        self._refuse_factors(state_dict)
        known = self.state_dict()
        gone = {key for key in state_dict if key in self.__dict__["isobit_keys"] and key not in known}
        if not gone:
            self.__dict__["isobit_is_reloaded"] = True  # torch takes what fits before it refuses the rest
            return super().load_state_dict(state_dict, strict, assign)
        float_state: FloatState | None = self.__dict__["isobit_float_state"]
        if float_state is None or any(key.startswith(f"{QUANTIZERS}.") for key in state_dict):
            raise ModelError(
                f"{min(gone)!r} was folded into other weights here, and this is the state of a simulator from before "
                f"that: leave out what begins with {QUANTIZERS!r}, or load it into a simulator that is not folded, and "
                "fold that"
            )
        folded = float_state.folded(self, state_dict, self.__dict__["isobit_keys"] | known.keys())
        kept = {key: value for key, value in state_dict.items() if key not in gone}
        self.__dict__["isobit_is_reloaded"] = True
        result = super().load_state_dict(
            {**kept, **{path: value for path, value in folded.items() if path in known}}, strict, assign
        )
        with torch.no_grad():
            for path, value in folded.items():
                if path not in known:
                    attribute(self, path).copy_(value)
        return result

    def _refuse_factors(self, state_dict: Mapping[str, Any]) -> None:
        """Raise ModelError for other values of weights of which a constant was computed: it would stay as it is."""
        for path in factors(self):
            value, own = state_dict.get(path), attribute(self, path)
            if isinstance(value, torch.Tensor) and not torch.equal(value.to(own), own):
                raise ModelError(
                    f"{path!r} was multiplied with another weight when the module was opened, and other values of it "
                    "cannot be loaded: load them into the module, and open that anew"
                )

    @property
    def quantizers(self) -> Mapping[str, Quantizer]:
        """The quantizers by their key: a view of those that are there at any time."""
        return MappingProxyType(self._modules[QUANTIZERS]._modules)  # type: ignore[union-attr,arg-type]

    def __deepcopy__(self, memo: dict[int, Any]) -> Simulator:
        root = nn.Module()
        for name in _MODULE_STATE:
            root.__dict__[name] = copy.deepcopy(self.__dict__[name], memo)
        copied = Simulator(root, copy_graph(self.graph)[0], self.__dict__["isobit_signature"])
        copied.take_history(self)
        copied.__dict__["isobit_is_float"] = self.__dict__["isobit_is_float"]
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> Any:
        raise TypeError("save sim.model.state_dict(), or the simulator by sim.save(path): no pickles of programs")

    def device(self) -> torch.device:
        """Where the parameters are."""
        return device_of(self)


@cache
def own_names() -> frozenset[str]:
    """The names of the simulator's own attributes, which no part of a user's module can have in it."""
    nothing = fx.Graph()
    nothing.output(())
    return frozenset(dir(Simulator(nn.Module(), nothing, Signature((), pytree.tree_flatten(())[1], ()))))
