"""Adapters of peft in a program: whose weights are whose, and how one takes the place of another in the graph.

A module of peft holds the weights of all its adapters, each under its name: ``...lora_A.NAME.weight``. A capture reads
those that were active.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from math import sqrt
from typing import Any

import torch
from torch import fx, nn

from isobit.errors import ModelError
from isobit_torch.program.fx_nodes import NAME, attribute, op_name
from isobit_torch.program.modules import Dropout
from isobit_torch.program.program import copy_graph

_HOLDERS = "lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|lora_dropout|modules_to_save"
_PART = re.compile(rf"(?P<before>(?:^|.*\.)(?:{_HOLDERS}))\.(?P<name>[^.]+)(?P<after>\..*|$)")
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class PeftAdapters:
    """The adapters of a program. `active` are those that its graph reads.

    `scales` are the factors behind a layer's adapter, by the layer's path and the adapter's name, `settings` the
    configurations as JSON data.
    """

    active: tuple[str, ...] = ()
    scales: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, graph: fx.Graph) -> PeftAdapters:
        """Those of a module, of which `graph` is the capture."""
        read = (_PART.fullmatch(str(node.target)) for node in graph.nodes if node.op == "get_attr")
        active = tuple(dict.fromkeys(match["name"] for match in read if match))
        if not active or any(_kind(config) != "LORA" for config in getattr(module, "peft_config", {}).values()):
            return cls()
        scales = {path: dict(m.scaling) for path, m in module.named_modules() if isinstance(_scaling(m), Mapping)}
        configs = getattr(module, "peft_config", {})
        return cls(active, scales, {name: _as_json(config) for name, config in configs.items()})


def _scaling(module: nn.Module) -> Any:
    return getattr(module, "scaling", None) if hasattr(module, "lora_A") else None


def _as_json(config: Any) -> dict[str, Any]:
    """A configuration of peft as its own file has it, for use, not for training."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        return sorted(value) if isinstance(value, set | frozenset) else str(value)

    values = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    read: dict[str, Any] = json.loads(json.dumps({**values, "inference_mode": True}, default=plain))
    return read


def notes(module: nn.Module) -> tuple[str, ...]:
    """What is to be known of adapters of peft that are no plain LoRA."""
    kinds = {name: _kind(config) for name, config in getattr(module, "peft_config", {}).items()}
    return tuple(
        f"adapter {name!r} is {kind}, which isobit takes for a part of the model: merge it into the model "
        "(merge_and_unload) before that is opened, or use LoRA"
        for name, kind in kinds.items()
        if kind != "LORA"
    )


def _kind(config: Any) -> str:
    kind = str(getattr(getattr(config, "peft_type", "LORA"), "value", config.peft_type))
    return "DoRA" if getattr(config, "use_dora", False) else kind


def names_of(root: nn.Module) -> tuple[str, ...]:
    """The names of all adapters that hold weights, as they come."""
    found = (_PART.fullmatch(path) for path, _ in root.named_parameters())
    return tuple(dict.fromkeys(match["name"] for match in found if match))


def parameters_of(root: nn.Module, name: str) -> dict[str, str]:
    """The paths of an adapter's parameters, and their names in its file."""
    matches = {path: _PART.fullmatch(path) for path, _ in root.named_parameters()}
    return {path: _in_file(match) for path, match in matches.items() if match and match["name"] == name}


def _in_file(match: re.Match[str]) -> str:
    before = match["before"].removesuffix(".modules_to_save")
    path = before + match["after"]
    return path if path.startswith(_PREFIX) else _PREFIX + path


def exchanged(graph: fx.Graph, root: nn.Module, adapters: PeftAdapters, name: str) -> tuple[fx.Graph, dict[str, float]]:
    """A graph that reads the weights of another adapter, and the new values of its factors by their paths.

    Raises ModelError where the one does not stand where the other stood.
    """
    old = _sole(adapters)
    theirs, ours = (set(parameters_of(root, which).values()) for which in (old, name))
    if theirs != ours:
        odd = sorted(theirs ^ ours)[0]
        raise ModelError(
            f"adapter {name!r} changes other layers than {old!r} ({odd} belongs to one of them): open a model for "
            "each, or give both the same target_modules"
        )
    copied, _ = copy_graph(graph)
    factors: dict[str, float] = {}
    for node in copied.nodes:
        if node.op in ("get_attr", "call_module"):
            path = _renamed(str(node.target), old, name)
            if node.op == "get_attr" or _is_dropout(root, path):
                node.target = path
        if NAME in node.meta:
            node.meta[NAME] = _renamed(node.meta[NAME], old, name)
            factors |= _factor(node, adapters, name)
    return copied, factors


def factors_of(graph: fx.Graph, adapters: PeftAdapters, name: str) -> dict[str, float]:
    """The values of the factors behind an adapter that the graph reads, by the paths of the constants."""
    return {path: value for node in graph.nodes for path, value in _factor(node, adapters, name).items()}


def _factor(node: fx.Node, adapters: PeftAdapters, name: str) -> dict[str, float]:
    """The constant that a layer's adapter is multiplied with, where `node` is the last layer of one."""
    layer, _, last = str(node.meta.get(NAME, "")).rpartition(".lora_B.")
    if last != name or node.op == "get_attr" or layer not in adapters.scales:
        return {}
    products = [user for user in node.users if op_name(user) in ("mul", "mul_")]
    constants = [str(n.target) for user in products for n in user.all_input_nodes if n.op == "get_attr"]
    value = adapters.scales[layer].get(name, 1.0)
    if len(constants) != 1:
        raise ModelError(f"the adapter of {layer!r} is of a kind that isobit cannot exchange: it is no plain LoRA")
    return {constants[0]: float(value)}


def _sole(adapters: PeftAdapters) -> str:
    if len(adapters.active) != 1:
        raise ModelError(
            f"the model was opened with {len(adapters.active)} adapters at once ({', '.join(adapters.active)}): call "
            "set_adapter with one name before it is opened, to exchange it here"
        )
    return adapters.active[0]


def _is_dropout(root: nn.Module, path: str) -> bool:
    try:
        return isinstance(attribute(root, path), Dropout)
    except AttributeError:
        return False


def _renamed(path: str, old: str, new: str) -> str:
    match = _PART.fullmatch(path)
    return path if match is None or match["name"] != old else f"{match['before']}.{new}{match['after']}"


def with_settings(adapters: PeftAdapters, root: nn.Module, name: str, settings: Mapping[str, Any]) -> PeftAdapters:
    """The adapters after one got the settings of a file: its factors follow from them. Raises ModelError."""
    own = adapters.settings.get(name, {})
    if not settings:
        return adapters
    if any(settings.get(key) for key in ("alpha_pattern", "use_dora")) and settings != own:
        raise ModelError(f"the file of adapter {name!r} has factors of its own for some layers, or is no plain LoRA")
    scales = {path: dict(by_name) for path, by_name in adapters.scales.items()}
    for path, by_name in scales.items():
        if name in by_name:
            rank = attribute(root, f"{path}.lora_A.{name}.weight").shape[0]
            alpha = float(settings.get("lora_alpha", own.get("lora_alpha", rank)))
            by_name[name] = alpha / (sqrt(rank) if settings.get("use_rslora") else rank)
    return replace(adapters, scales=scales, settings={**adapters.settings, name: dict(settings)})


def train_instead(root: nn.Module, old: str, new: str) -> None:
    """Let the parameters of one adapter train as those of another did, which are frozen, as peft's set_adapter does."""
    was = any(attribute(root, path).requires_grad for path in parameters_of(root, old))
    for which, trains in ((old, False), (new, was)):
        for path in parameters_of(root, which):
            parameter = attribute(root, path)
            parameter.requires_grad_(trains and parameter.is_floating_point())
            if not trains:
                parameter.grad = None


def write_parameters(root: nn.Module, name: str, weights: Mapping[str, Any], factors: Mapping[str, float]) -> None:
    """New values of an adapter's parameters, and of constants of the graph."""
    with torch.no_grad():
        for path, key in parameters_of(root, name).items():
            if key in weights:
                attribute(root, path).copy_(torch.from_numpy(weights[key]))
        for path, value in factors.items():
            attribute(root, path).fill_(value)
