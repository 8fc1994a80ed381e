"""Capturing a module: torch.export's training IR (no decompositions), in evaluation mode, with dynamic axes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from isobit.errors import ModelError
from isobit_torch.capture.aids.decided_branches import DecidedBranches, TakenWays, Ways, told
from isobit_torch.capture.aids.known_numbers import KnownNumbers
from isobit_torch.capture.aids.packed_sequences import PaddedSequences, why_not_padded
from isobit_torch.capture.aids.picked_rows import AllRows, require_by_row
from isobit_torch.capture.aids.states_of_packed import with_checked_states
from isobit_torch.capture.caches import Caches
from isobit_torch.capture.errors import DependsOnValuesError, explain, explain_failure
from isobit_torch.capture.fast_path import padding_notes
from isobit_torch.capture.kept_states import kept_states
from isobit_torch.capture.own_copy.copy_module import copy_module, refuse_quantized, refuse_scripts
from isobit_torch.capture.own_copy.reached_parameters import reached_parameters
from isobit_torch.capture.say_captured import deciding_question, say_captured
from isobit_torch.capture.time_first import Sizes, time_first_sizes
from isobit_torch.program.devices import require_one_device
from isobit_torch.program.fx_nodes import full_name, op_name
from isobit_torch.program.shapes import is_open, is_sequence
from isobit_torch.program.signature import (
    Argument,
    Call,
    Signature,
    example_calls,
    in_words,
    output_names,
    register_dataclasses,
)
from isobit_torch.program.torch_export import (
    from_left_to_right,
    named_arguments,
    quiet,
    without_autocast,
    without_moves,
)

#: What helps to capture code that looks at values: nothing; what holds for any data; what the example decides.
Aid = Literal["none", "rules", "example"]


class Aids:
    """What helps to capture code that asks tensors for values.

    Known numbers, padded sequences in place of packed ones, and all rows in place of picked ones; or, where the example
    shall decide, its own `ways` at branches in place of the last: ``if mask.any()`` is a branch then.
    """

    def __init__(self, module: nn.Module, ways: Ways | None) -> None:
        self._module, self._rows, self._sequences = module, AllRows(), PaddedSequences()
        self._buffers = dict(module.named_buffers())
        self._numbers = KnownNumbers({}, module)
        self._ways, self._branches = ways, DecidedBranches({}, self._numbers.knows)

    @property
    def decided(self) -> Ways:
        """The branches of the last block that the example decided."""
        return self._branches.decided

    @property
    def has_picked(self) -> bool:
        """Whether a mask picked rows in the last block."""
        return self._rows.has_picked

    @property
    def has_packed(self) -> bool:
        """Whether sequences were packed in the last block."""
        return self._sequences.has_packed

    @property
    def buffers(self) -> Sequence[str]:
        """The buffers for whose values code asked in the last block."""
        return sorted(self._numbers.asked)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A block of them, inside of the module's own forward."""
        self._rows, self._numbers = AllRows(), KnownNumbers(self._buffers, self._module)
        self._sequences = PaddedSequences()
        self._branches = DecidedBranches(self._ways or {}, self._numbers.knows)
        with self._numbers, self._rows if self._ways is None else self._branches, self._sequences:
            yield


@dataclass(frozen=True)
class Capture:
    """The user's module (a copy, in evaluation mode), the call of it, its program and its signature."""

    module: nn.Module
    call: Call
    program: ExportedProgram
    signature: Signature
    notes: tuple[str, ...]
    caches: Caches
    is_doubled: bool = False  # the example of one sample was repeated
    decided: Ways = field(default_factory=dict)  # branches that hold for inputs like the example alone
    reached: dict[str, str] = field(default_factory=dict)  # parameters that the program has as constants


def capture(model: nn.Module, example: Any, *, is_fixed: bool = False, aid: Aid = "none") -> Capture:
    """Capture a copy of `model`, where `is_fixed` for the example's sizes alone.

    With an `aid`, numbers in tensors are known (`known_numbers`) and packed sequences are computed padded
    (`packed_sequences`); by "rules", what a mask picks is computed for all rows (`picked_rows`), and with that of the
    "example", branches go its way (`decided_branches`).
    Raises ModelError that quotes the line of the user's code which stands in the way.
    """
    refuse_scripts(model)
    refuse_quantized(model)
    with without_autocast() as asked:
        captured = _capture(model, example, is_fixed, aid)
    if not asked:
        return captured
    note = f"torch.autocast to {asked[0]} in forward is left out: the simulator computes in float32"
    return replace(captured, notes=(*captured.notes, note))


def _capture(model: nn.Module, example: Any, is_fixed: bool, aid: Aid) -> Capture:
    module = copy_module(model)
    device = require_one_device(module)
    others = _other_precisions(module)
    readings, misfit = example_calls(module, example)
    calls = [_moved(call, device) for call in readings]
    caches = Caches.of(module, calls)
    caches.settle(module)
    if others:
        module, calls = module.float(), [_in_float32(call) for call in calls]
    calls += [_in_float32(call) for call in calls if _is_in_other_precision(call)]
    try:
        with say_captured(False) as asked:
            call, outputs, is_doubled = _running_call(module, calls, misfit, not is_fixed)
    except ModelError as error:
        if not others:
            raise
        hint = f"the model is in {', '.join(others)} and is computed in float32: write dtypes as x.dtype in forward"
        raise ModelError(f"{error}; {hint}") from error
    states = kept_states(model, module, lambda: _outputs(module, call))
    unrun = module
    if states:
        unrun = copy_module(model).float() if others else copy_module(model)
        caches.settle(unrun)
    aids = None if aid == "none" else Aids(unrun, _ways(module, call) if aid == "example" else None)
    sizes = time_first_sizes(module, lambda: _outputs(module, call))
    question = deciding_question(asked, outputs, lambda: _outputs(module, call))
    with say_captured(False) if question else nullcontext():
        program, fixed = _export(unrun, call, is_fixed, aids, sizes)
    notes = [*fixed, *padding_notes(module, outputs, lambda: _outputs(module, call))]
    if question:
        notes.append(f"the code computes something else where {question} says that it is captured: it is told no")
    if aids is not None and aids.has_picked:
        require_by_row(module, call)
        notes.append(
            "rows that a mask picks or counts split, as for experts, are computed for all rows, and what is of other "
            "rows dropped"
        )
    if aids is not None and aids.has_packed:
        reason = why_not_padded(module, call)
        if reason is not None:
            raise DependsOnValuesError(f"the model {type(model).__name__} cannot be captured: {reason}")
        notes.append(
            "packed sequences are computed padded, with their lengths heeded; results have the length of the padding "
            "where the module's have that of the longest sequence"
        )
    if aids is not None and aids.buffers:
        names = ", ".join(map(repr, aids.buffers))
        notes.append(
            f"the code asks for the values of the buffers {names}: what it does is fixed to what they hold now"
        )
    decided = aids.decided if aids is not None else {}
    notes += told(decided)
    if others:
        notes.append(f"the model is in {', '.join(others)}, and the simulator computes in float32")
    elif any(map(_is_in_other_precision, calls)) and not _is_in_other_precision(call):
        notes.append("the data is in another precision than float32, in which the model takes it")
    if states:
        notes.append(_states_note(states))
    if caches.is_off:
        notes.append("the cache of keys and values (use_cache) is not returned: pass use_cache=True to have it")
    signature = Signature(_arguments(call, program), _out_spec(outputs, program), output_names(outputs))
    reached = reached_parameters(program, unrun, model)
    return Capture(module, call, program, signature, tuple(notes), caches, is_doubled, decided, reached)


def _ways(module: nn.Module, call: Call) -> Ways:
    taken = TakenWays()
    with taken:
        _outputs(module, call)
    return taken.ways


def _states_note(states: Sequence[str]) -> str:
    names = ", ".join(repr(name) for name in states)
    return (
        f"forward keeps {names} from one call to the next; here each call starts from what the model held when it was "
        "opened: take it as an argument, and return it, to have it go on"
    )


def _other_precisions(module: nn.Module) -> list[str]:
    """The floating-point types of a module beside float32, by name."""
    tensors: list[torch.Tensor] = [*module.parameters()] or list(
        module.buffers()
    )  # a buffer of 64 bits beside parameters is meant so
    types = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return sorted(str(dtype).removeprefix("torch.") for dtype in types - {torch.float32})


def _in_float32(call: Call) -> Call:
    """The example in float32, as the module is."""

    def converted(leaf: torch.Tensor) -> torch.Tensor:
        return leaf.float() if leaf.is_floating_point() else leaf

    args, kwargs = pytree.tree_map_only(torch.Tensor, converted, (call.args, call.kwargs))
    return replace(call, args=args, kwargs=kwargs)


def _is_in_other_precision(call: Call) -> bool:
    leaves = pytree.tree_leaves((call.args, call.kwargs))
    return any(isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float64, torch.float16) for leaf in leaves)


def _moved(call: Call, device: torch.device) -> Call:
    """The example on the model's device, wherever the user has it."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(device), (call.args, call.kwargs))
    return replace(call, args=args, kwargs=kwargs)


def _running_call(
    module: nn.Module, calls: Sequence[Call], misfit: ModelError | None, may_double: bool
) -> tuple[Call, Any, bool]:
    """The first reading of the batch that the module runs on, and its outputs. Raises the ModelError of the first."""
    failure = misfit
    for call in calls:
        try:
            outputs = _outputs(module, call)
        except ModelError as error:
            failure = failure or error
            continue
        doubled = _batched(call) if may_double else call
        if doubled is call:
            return call, outputs, False
        try:
            return doubled, _outputs(module, doubled), True
        except ModelError:  # it has no batch, or has it elsewhere: the example stays as given
            return call, outputs, False
    assert failure is not None
    raise failure


def _outputs(module: nn.Module, call: Call) -> Any:
    """What the module itself returns for the example; neither the example nor the module's buffers are changed."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (call.args, call.kwargs))
    # What `expand` has made repeats its values in memory, and nothing can be written into it.
    before = {name: buffer.clone() for name, buffer in module.named_buffers() if 0 not in buffer.stride()}
    with torch.no_grad(), with_checked_states(module):
        try:
            outputs = module(*args, **kwargs)
        except Exception as error:
            raise ModelError(explain_failure(error, module, in_words(call.args, call.kwargs))) from error
        for name, buffer in module.named_buffers():
            if name in before:
                buffer.copy_(before[name])
    register_dataclasses(outputs)
    return outputs


def _batched(call: Call) -> Call:
    """A batch of one is repeated to two: torch.export takes a size of one for a constant."""
    leaves = [leaf for leaf in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(leaf, torch.Tensor)]
    if not leaves:
        raise ModelError("the example inputs hold no tensor")
    sizes = {leaf.shape[0] for leaf in leaves if leaf.ndim}
    if sizes != {1}:
        return call

    def twice(leaf: Any) -> Any:
        return leaf.repeat(2, *[1] * (leaf.ndim - 1)) if isinstance(leaf, torch.Tensor) and leaf.ndim else leaf

    args, kwargs = pytree.tree_map(twice, (call.args, call.kwargs))
    return replace(call, args=args, kwargs=kwargs)


def _export(
    module: nn.Module, call: Call, is_fixed: bool, aids: Aids | None, sizes: Sizes
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Try axes from the most to the least dynamic; where all tries fail, the error of the first is raised."""
    second = "the size of the second axis" if sizes else "the sequence length"
    tries = [(True, True, ""), (True, False, f"{second} is fixed")]
    tries.append((False, False, f"the batch size and {second} are fixed"))
    if not any(_has_second(leaf, sizes) for leaf in pytree.tree_leaves((call.args, call.kwargs))):
        tries = [(True, False, ""), (False, False, "the batch size is fixed")]
    failure: Exception | None = None
    if is_fixed:
        tries = tries[-1:]
    for batch, sequence, note in tries:
        shapes = pytree.tree_map(lambda leaf: _dynamic(leaf, batch, sequence, sizes), call.by_name)  # noqa: B023
        try:
            named = named_arguments(module, call, aids or nullcontext)
            with quiet(), without_moves(), from_left_to_right(), named, torch.no_grad():
                program = torch.export.export(
                    module, call.args, call.kwargs, dynamic_shapes=shapes if batch else None, strict=False
                )
        except Exception as error:
            failure = failure or error
            continue
        if batch and (_sets_by_a_size(program) or (aids is not None and _asks_for_values(program))):
            continue
        if batch and not _is_open(program, 0):
            note = note or "the batch size is fixed"
        elif sequence and not _is_open(program, 1):
            note = note or f"{second} is fixed"
        return program, (f"{note} to that of the example: the model's code depends on it",) if note else ()
    assert failure is not None
    raise explain(failure, module) from failure


#: Calls whose settings a file holds as numbers: groups that follow the batch, a window as long as the sequence.
_HAVE_SETTINGS = re.compile(r"aten::(conv|max_pool|avg_pool|group_norm|pixel_|channel_shuffle|im2col|col2im)")


def _sets_by_a_size(program: ExportedProgram) -> bool:
    """Whether a setting of a layer is computed from a size that is left open."""
    for node in program.graph.nodes:
        if node.op == "call_function" and _HAVE_SETTINGS.match(full_name(node)):
            values = [value.meta.get("val") for value in node.all_input_nodes]
            if any(isinstance(value, torch.SymInt) and is_open(value, program.graph) for value in values):
                return True
    return False


def _asks_for_values(program: ExportedProgram) -> bool:
    """Whether a result follows a number out of a tensor: it may follow a size, and be known where that is fixed."""
    read: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op == "output" or node in read:
            read.update(node.all_input_nodes)
    return any(op_name(node) == "item" for node in read)


def _is_open(program: ExportedProgram, axis: int) -> bool:
    """Whether any input has an open size there: torch.export fixes, without a word, what the code fixes."""
    names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    tensors = [value for value in values if isinstance(value, torch.Tensor) and value.ndim > axis]
    return any(is_open(value.shape[axis], program.graph) for value in tensors)


def _has_second(leaf: Any, sizes: Sizes) -> bool:
    """Whether a second axis is to be open: that of token ids and masks, and of vectors where samples lie on it."""
    if not isinstance(leaf, torch.Tensor) or leaf.ndim < 2 or leaf.shape[1] == 1:
        return False
    return is_sequence(leaf) or (leaf.ndim == 3 and tuple(leaf.shape[:2]) in sizes)


def _dynamic(leaf: Any, batch: bool, sequence: bool, sizes: Sizes) -> Any:
    if not isinstance(leaf, torch.Tensor) or not leaf.ndim:
        return None
    axes: dict[int, Any] = {0: Dim.AUTO} if batch and leaf.shape[0] > 1 else {}
    if sequence and _has_second(leaf, sizes):
        axes[1] = Dim.AUTO
    return axes or None


def _arguments(call: Call, program: ExportedProgram) -> tuple[Argument, ...]:
    inputs = iter(spec for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT")
    arguments = []
    for name, value in zip(call.names, (*call.args, *call.kwargs.values()), strict=True):
        leaves, spec = pytree.tree_flatten(value)
        names = [_input_name(next(inputs), leaf) for leaf in leaves]
        arguments.append(Argument(name, spec, tuple(names)))
    return tuple(arguments)


def _input_name(spec: Any, leaf: Any) -> str | None:
    return spec.arg.name if isinstance(leaf, torch.Tensor) else None


def _out_spec(outputs: Any, program: ExportedProgram) -> pytree.TreeSpec:
    spec = program.call_spec.out_spec
    return spec if spec is not None else pytree.tree_flatten(outputs)[1]
