"""How a model is called: the user's arguments to a flat list of tensors, and flat outputs to the user's structure."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from isobit.errors import DataError, ModelError, did_you_mean
from isobit.graph.free_name import take_name


@dataclass(frozen=True)
class Argument:
    """One argument of forward: its structure, and for each of its leaves the input's name, None for a constant."""

    name: str
    spec: pytree.TreeSpec
    leaves: tuple[str | None, ...]


@dataclass(frozen=True)
class Signature:
    """The arguments in order, and the outputs: their structure and each leaf's name, None for what is no tensor."""

    arguments: tuple[Argument, ...]
    out_spec: pytree.TreeSpec
    outputs: tuple[str | None, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensor inputs, in order."""
        return tuple(leaf for argument in self.arguments for leaf in argument.leaves if leaf is not None)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The tensor inputs in order. Raises DataError for a missing or unknown argument."""
        names = [argument.name for argument in self.arguments]
        if len(args) > len(names):
            raise DataError(
                f"the model was captured with {len(names)} argument(s), {', '.join(names)}; {len(args)} are given"
            )
        values = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in values:
                raise DataError(f"argument {name!r} is given twice")
            if name not in names and value is not None and isinstance(value, torch.Tensor):
                raise DataError(
                    f"the model was captured without argument {name!r}{did_you_mean(name, names)}; "
                    "open it with an example that has it"
                )
            values[name] = value
        flat: list[Any] = []
        for argument in self.arguments:
            if not any(argument.leaves):
                continue
            if argument.name not in values:
                raise DataError(f"argument {argument.name!r} is missing; the model takes {', '.join(names)}")
            value = cache_tensors(values[argument.name])
            leaves = [value] if argument.spec.is_leaf() else pytree.tree_leaves(value)
            if len(leaves) != len(argument.leaves):
                raise DataError(
                    f"argument {argument.name!r} holds {len(leaves)} values, and had {len(argument.leaves)}"
                )
            flat += [leaf for leaf, name in zip(leaves, argument.leaves, strict=True) if name is not None]
        return flat

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The user's structure of flat outputs."""
        return outputs[0] if self.out_spec.is_leaf() else pytree.tree_unflatten(list(outputs), self.out_spec)


@dataclass(frozen=True)
class Call:
    """An example call: positional and named arguments of tensors, and the names of forward's parameters they go to."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]  # of args, then kwargs
    caches: Mapping[str, Any] = field(default_factory=dict)  # those that tuples of tensors stand for here, by name

    @property
    def by_name(self) -> dict[str, Any]:
        """The arguments by name, in order."""
        return dict(zip(self.names, (*self.args, *self.kwargs.values()), strict=True))

    @property
    def plain(self) -> inspect.Signature:
        """A signature with these arguments and nothing open-ended."""
        kinds: list[Any] = [inspect.Parameter.POSITIONAL_OR_KEYWORD] * len(self.args)
        kinds += [inspect.Parameter.KEYWORD_ONLY] * len(self.kwargs)
        return inspect.Signature([inspect.Parameter(n, kind) for n, kind in zip(self.names, kinds, strict=True)])


def example_calls(model: torch.nn.Module, example: Any) -> tuple[list[Call], ModelError | None]:
    """The calls that one batch as a user has it may stand for, as given first: a tensor, a tuple, a dict, with labels.

    With them, why the batch as given fits forward in no way, if so. Raises ModelError where nothing fits.
    """
    if example is None:
        raise ModelError(
            "a PyTorch model is opened by running it on one batch, and none could be taken: pass data as a list or a "
            "loader of batches (what an iterator gives is lost for calibration: make a list of it), or pass "
            "example_inputs, one batch as a tensor, tuple or dict"
        )
    _require_tensors(example)
    signature = inspect.signature(model.forward)
    calls: list[Call] = []
    failure: ModelError | None = None
    for args, kwargs in _readings(signature, example):
        try:
            calls.append(_bound(signature, args, kwargs))
        except ModelError as error:
            failure = failure or (error if not calls else None)
    if not calls and failure is not None:
        raise failure
    return calls, failure


def _require_tensors(example: Any) -> None:
    """Raise ModelError for a batch in which there is nothing that a module computes with."""
    leaves = pytree.tree_leaves(_plain(example))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if any(leaf.is_nested or leaf.layout != torch.strided for leaf in tensors):
        raise ModelError("a batch holds a sparse or nested tensor: pass x.to_dense(), or x.to_padded_tensor(0)")
    if not tensors and not any(isinstance(leaf, np.ndarray | bool | int | float) or is_cache(leaf) for leaf in leaves):
        raise ModelError(
            f"a batch holds no tensor and no array, but {in_words(leaves, {})}: make tensors of it first, by a "
            "transform of the loader or inputs=lambda batch: ..."
        )


def _plain(value: Any) -> Any:
    """Dataclasses and objects with keys as dicts, for a look at what is in them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if hasattr(value, "keys") and hasattr(value, "__getitem__"):
        return [_plain(value[key]) for key in value.keys()]  # noqa: SIM118 (BatchEncoding iterates values)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _readings(signature: inspect.Signature, example: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments by position and by name, the batch as it is first, then without labels and paths."""
    parameters = signature.parameters.values()
    required = sum(p.default is p.empty and p.kind in _BY_POSITION for p in parameters)
    is_dataclass = dataclasses.is_dataclass(example)
    if is_dataclass or isinstance(example, Mapping) or (hasattr(example, "keys") and hasattr(example, "__getitem__")):
        fields: Any = (
            {f.name: getattr(example, f.name) for f in dataclasses.fields(example)} if is_dataclass else example
        )
        named = {str(key): fields[key] for key in fields.keys()}  # noqa: SIM118 (BatchEncoding iterates values)
        yield (), named
        chosen = {name: value for name, value in named.items() if name in signature.parameters}
        if chosen and len(chosen) < len(named):
            yield (), chosen
        yield (example,), {}
        return
    values = tuple(example) if isinstance(example, tuple | list) else (example,)
    yield values[: _positional(signature)], {}
    if required < len(values):
        yield values[:required], {}
    first = values[0] if values else None
    if len(values) == 2 and not isinstance(first, torch.Tensor | np.ndarray | str):
        yield from _readings(signature, first)
    if len(values) > 1 and isinstance(example, tuple | list):
        yield (example,), {}


def _bound(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    parameters = signature.parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in kwargs:
        if name not in parameters and not open_ended:
            raise ModelError(
                f"the model's forward has no argument {name!r}{did_you_mean(name, parameters)}; "
                f"it takes {', '.join(parameters)}: name them so, or pass {_picked(parameters, kwargs)}"
            )
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ModelError(
            f"one batch, {in_words(args, kwargs)}, does not fit forward({', '.join(parameters)}): {error}; a list or "
            f"tuple of data holds batches, each {_as_tuple(parameters)} or a dict with these keys"
        ) from error
    register_dataclasses((args, kwargs))
    names = _names(signature, len(args), kwargs)
    caches = {name: value for name, value in zip(names, (*args, *kwargs.values()), strict=True) if _is_dynamic(value)}
    tensors = tuple(_tensors(value) for value in args)
    return Call(tensors, {n: _tensors(v) for n, v in kwargs.items()}, names, caches)


def _as_tuple(parameters: Mapping[str, inspect.Parameter]) -> str:
    required = [name for name, p in parameters.items() if p.default is p.empty and p.kind in _BY_POSITION]
    return f"({', '.join(required)}{',' if len(required) == 1 else ''})"


def _picked(parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> str:
    """The line that picks a model's arguments from batches with other keys."""
    required = [name for name, p in parameters.items() if p.default is p.empty and p.kind in _BY_POSITION]
    spare = [name for name in given if name not in parameters]
    keys = {name: name if name in given else spare.pop(0) if spare else "..." for name in required}
    pairs = ", ".join(f"{name!r}: batch[{key!r}]" for name, key in keys.items())
    return f"inputs=lambda batch: {{{pairs}}}"


def in_words(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What a batch holds, by type and shape."""
    named = [f"{name}={_value_in_words(value)}" for name, value in kwargs.items()]
    return ", ".join([*map(_value_in_words, args), *named]) or "nothing"


def _value_in_words(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + in_words((), value) + "}"
    if isinstance(value, list | tuple) and len(value) <= _FEW:
        return f"({in_words(value, {})})"
    return type(value).__name__


_FEW = 4

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _positional(signature: inspect.Signature) -> int:
    kinds = [p.kind for p in signature.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return 1 << 30
    return sum(kind in _BY_POSITION for kind in kinds)


def _names(signature: inspect.Signature, count: int, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    names: list[str] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(count - len(names))]
        elif len(names) < count and parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            names.append(name)
    return (*names[:count], *kwargs)


def _tensors(value: Any) -> Any:
    return pytree.tree_map(_tensor, value)


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    return cache_tensors(value)


def is_cache(value: Any) -> bool:
    """Whether a value is a cache of keys and values of HuggingFace's transformers."""
    return type(value).__module__.startswith("transformers.") and type(value).__name__.endswith("Cache")


def _is_dynamic(value: Any) -> bool:
    """Whether a cache holds nothing but tensors that grow: one of fixed size keeps a position too."""
    layers = getattr(value, "layers", None) if is_cache(value) else None
    return isinstance(layers, list) and all(
        type(layer).__name__.startswith("Dynamic") and isinstance(getattr(layer, "keys", None), torch.Tensor)
        for layer in layers
    )


def cache_tensors(value: Any) -> Any:
    """The keys and values of each layer of a cache, as a tuple of pairs; any other value as it is."""
    return tuple((layer.keys, layer.values) for layer in value.layers) if _is_dynamic(value) else value


def register_dataclasses(value: Any) -> None:
    """Let torch see into the dataclasses of a structure, as `torch.export.register_dataclass` does."""
    leaves = [leaf for leaf in pytree.tree_leaves(value) if dataclasses.is_dataclass(leaf)]
    kinds = {leaf if isinstance(leaf, type) else type(leaf) for leaf in leaves} - set(pytree.SUPPORTED_NODES)
    for kind in kinds:
        torch.export.register_dataclass(kind, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}")
    if kinds:
        register_dataclasses(value)


def output_names(structure: Any) -> tuple[str | None, ...]:
    """A name for each leaf: keys of dicts and dataclasses joined by dots, else ``output``, ``output_1`` and so on."""
    names: list[str | None] = []
    taken: set[str] = set()
    for path, leaf in _leaves(structure):
        if not isinstance(leaf, torch.Tensor):
            names.append(None)
            continue
        named = any(isinstance(key, str) for key in path)
        stem = ".".join(str(key) for key in path) if named else "output"
        names.append(take_name(stem, taken))
    return tuple(names)


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any]]:
    """The leaves in pytree order, each with the keys and indices that lead to it."""
    flatten = pytree.SUPPORTED_NODES.get(pytree._get_node_type(value))
    if flatten is None:
        return [(path, value)]
    children, _ = flatten.flatten_fn(value)
    keys: list[Any] = list(range(len(children)))
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
    elif hasattr(value, "_fields"):
        keys = list(value._fields)
    elif dataclasses.is_dataclass(value):
        keys = [field.name for field in dataclasses.fields(value) if getattr(value, field.name) is not None]
    if len(keys) != len(children):
        keys = list(range(len(children)))
    return [leaf for key, child in zip(keys, children, strict=True) for leaf in _leaves(child, (*path, key))]


# --- as data ---------------------------------------------------------------------------------------------------------


def signature_to_record(signature: Signature) -> dict[str, Any]:
    """A JSON-ready record of a signature; structures of the user's own classes come back as dicts and tuples."""
    return {
        "arguments": [[a.name, _spec_to_record(a.spec), list(a.leaves)] for a in signature.arguments],
        "out": _spec_to_record(signature.out_spec),
        "outputs": list(signature.outputs),
    }


def _spec_to_record(spec: pytree.TreeSpec) -> Any:
    """A structure of tuples, lists and dicts; any other container becomes a dict or a tuple."""
    if spec.is_leaf():
        return "*"
    children = [_spec_to_record(child) for child in spec.children()]
    if spec.type in (list, tuple):
        return [spec.type.__name__, children]
    keys = spec.context if isinstance(spec.context, list) else None
    if keys is None and isinstance(spec.context, tuple) and spec.context and isinstance(spec.context[0], list):
        keys = spec.context[0]
    if keys is not None and len(keys) == len(children):
        return ["dict", children, [str(key) for key in keys]]
    return ["tuple", children]


def plain_spec(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """A structure of tuples, lists and dicts alone, for files that are read where the user's classes are not."""
    return _spec_from_record(_spec_to_record(spec))


def _spec_from_record(record: Any) -> pytree.TreeSpec:
    def build(entry: Any) -> Any:
        if entry == "*":
            return 0
        children = [build(child) for child in entry[1]]
        if entry[0] == "dict":
            return dict(zip(entry[2], children, strict=True))
        return children if entry[0] == "list" else tuple(children)

    return pytree.tree_flatten(build(record))[1]


def signature_from_record(record: dict[str, Any]) -> Signature:
    """The inverse of `signature_to_record`."""
    arguments = tuple(
        Argument(name, _spec_from_record(spec), tuple(leaves)) for name, spec, leaves in record["arguments"]
    )
    return Signature(arguments, _spec_from_record(record["out"]), tuple(record["outputs"]))
