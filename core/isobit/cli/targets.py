"""`isobit targets`: the runtimes that isobit knows, and what each can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isobit.cli.complete import target_names
from isobit.cli.guard import Debug
from isobit.cli.terminal import line, print_json, table

if TYPE_CHECKING:
    from isobit.targets.target import Target


def targets(
    name: Annotated[
        str | None,
        typer.Argument(help="Show all of one target: its name, or a .toml file.", autocompletion=target_names),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    _debug: Debug = False,
) -> None:
    """List the targets (runtimes), or show what one of them can do."""
    from isobit.plugins import registry

    if name is not None:
        target = registry().target(name)
        if as_json:
            print_json(_as_data(target))
        else:
            _show(target)
        return
    rows = _rows()
    if as_json:
        print_json(rows)
        return
    columns = ("target", "activations x weights", "description")
    table(
        columns,
        [(row["name"], row.get("formats", "not valid"), row.get("description", row.get("error", ""))) for row in rows],
    )
    line("isobit targets NAME shows all of one; --target takes a name or a .toml file of yours")


def _rows() -> list[dict[str, str]]:
    """One row a target; a plug-in's broken file is a row too, not the end of the list."""
    from isobit.errors import TargetError
    from isobit.plugins import registry

    rows = []
    for name, path in sorted(registry().targets().items()):
        try:
            target = registry().target(name)
        except TargetError as error:
            rows.append({"name": name, "file": str(path), "error": str(error)})
            continue
        formats = f"{target.activations.type_name} x {target.weights.type_name}"
        rows.append({"name": name, "formats": formats, "description": target.description, "file": str(path)})
    return rows


def _as_data(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "description": target.description,
        "activations": {"default": str(target.activations), "allowed": list(target.activation_types)},
        "weights": {
            "default": str(target.weights),
            "allowed": list(target.weight_types),
            "granularities": list(target.weight_granularities),
            "per_channel_ops": sorted(target.per_channel_ops),
        },
        "bias": "int32" if target.int32_bias else "float",
        "quantize": {"ops": sorted(target.ops), "except": sorted(target.excluded_ops)},
        "fusions": [
            ["|".join(sorted(step.ops)) + ("?" if step.optional else "") for step in steps] for steps in target.fusions
        ],
        "ties": {"same": sorted(target.same_encoding), "joint": sorted(target.joint_encoding)},
        "fixed_ranges": {op: list(limits) for op, limits in target.fixed_ranges.items()},
    }


def _show(target: Target) -> None:
    data = _as_data(target)
    activations, weights = data["activations"], data["weights"]
    everything = "all" if target.ops == {"*"} else ", ".join(data["quantize"]["ops"])
    rows = [
        ("activations", activations["default"]),
        ("  also", ", ".join(activations["allowed"])),
        ("weights", weights["default"]),
        ("  also", ", ".join(weights["allowed"])),
        ("  granularities", ", ".join(weights["granularities"])),
        ("  per-channel in", ", ".join(weights["per_channel_ops"])),
        ("bias", data["bias"]),
        ("quantized ops", everything),
        ("  except", ", ".join(data["quantize"]["except"]) or "none"),
        ("run as one", "\n".join(" -> ".join(steps) for steps in data["fusions"]) or "none"),
        ("output as input", ", ".join(data["ties"]["same"]) or "none"),
        ("inputs alike", ", ".join(data["ties"]["joint"]) or "none"),
        (
            "fixed ranges",
            ", ".join(f"{op} [{low:g}, {high:g}]" for op, (low, high) in data["fixed_ranges"].items()) or "none",
        ),
    ]
    line(f"{target.name}: {target.description}", style="bold")
    table(("", ""), rows)
