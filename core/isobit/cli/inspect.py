"""`isobit inspect`: what is in a model, and what a target would quantize; or what is in a file of encodings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isobit.cli.guard import Debug
from isobit.cli.terminal import capped, line, print_json, table

if TYPE_CHECKING:
    from isobit.encodings.encoding import Encoding
    from isobit.graph.graph import Graph, TensorInfo
    from isobit.quantsim.quantsim import QuantSim

_SHOWN = 20


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model, or an encodings.json.", show_default=False)],
    target: Annotated[
        str, typer.Option("--target", metavar="NAME", help="Say what this target would quantize.")
    ] = "default",
    backend: Annotated[
        str | None, typer.Option("--backend", metavar="NAME", help="The backend that opens the model.")
    ] = None,
    no_fold: Annotated[
        bool, typer.Option("--no-fold", metavar="", help="Plan without folding batch norms first.")
    ] = False,
    show_all: Annotated[bool, typer.Option("--all", metavar="", help=f"List all, not the first {_SHOWN}.")] = False,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    _debug: Debug = False,
) -> None:
    """Show a model's inputs, outputs and operations, and what a target would quantize; or a table of encodings.

    [bold]Examples[/bold]

    isobit inspect model.onnx --target onnxruntime-cpu

    isobit inspect out/encodings.json --all
    """
    from isobit.errors import ModelError

    if not path.exists():
        raise ModelError(f"{path}: no such file")
    cap = 10**9 if show_all else _SHOWN
    if _is_for_encodings(path.suffix.lower()):
        _inspect_encodings(path, cap, as_json)
    else:
        _inspect_model(path, target, backend, not no_fold, cap, as_json)


def _is_for_encodings(ending: str) -> bool:
    """Whether files of this ending hold encodings, and no model that a backend opens."""
    from isobit.plugins import registry

    models = {suffix for backend in registry().backends().values() for suffix in backend.suffixes}
    return ending in {form.suffix for form in registry().formats().values()} - models


def _inspect_encodings(path: Path, cap: int, as_json: bool) -> None:
    from isobit.graph.sites import site_key
    from isobit.quantsim.encodings_files import read_encodings

    encodings = read_encodings(path)
    if as_json:
        rows = [{"kind": site_key(site)[0], "name": str(site), **_encoding_data(e)} for site, e in encodings.items()]
        print_json({"path": str(path), "encodings": rows})
        return
    listed = [(site_key(site)[0], str(site), encoding) for site, encoding in encodings.items()]
    line(f"{path}: {len(listed)} encodings", style="bold")
    cells = [
        (
            kind,
            name,
            _short_format(e),
            _few(e, "scale"),
            _few(e, "zero_point"),
            f"[{e.minimum.min():.4g}, {e.maximum.max():.4g}]",
        )
        for kind, name, e in listed[:cap]
    ]
    table(("site", "name", "format", "scale", "zero point", "range"), cells)
    if len(listed) > cap:
        line(f"... and {len(listed) - cap} more: --all lists them")


def _encoding_data(encoding: Encoding) -> dict[str, Any]:
    return {
        "format": str(encoding.spec),
        "scale": encoding.scale.astype(float).tolist(),
        "zero_point": encoding.zero_point.tolist(),
        "axis": encoding.axis,
        "minimum": float(encoding.minimum.min()),
        "maximum": float(encoding.maximum.max()),
    }


def _short_format(encoding: Encoding) -> str:
    """The format without the symmetry that is the default (`isobit.encodings.quant_spec`)."""
    spec = encoding.spec
    return str(spec).replace(" symmetric", "") if spec.dtype == "int" else str(spec).replace(" asymmetric", "")


def _few(encoding: Encoding, field: str) -> str:
    """The one value, or the lowest and highest of several."""
    values = getattr(encoding, field)
    if values.size == 1 or values.min() == values.max():
        return f"{values.flat[0]:.4g}"
    return f"{values.min():.3g}..{values.max():.3g}"


def _inspect_model(path: Path, target: str, backend: str | None, fold: bool, cap: int, as_json: bool) -> None:
    from isobit.quantsim.quantsim import QuantSim
    from isobit.techniques.fold_batch_norms import FoldBatchNorms

    sim = QuantSim(path, target=target, backend=backend)
    data = {"path": str(path), **_graph_data(sim.graph)}
    reports = sim.apply(FoldBatchNorms()) if fold else []
    folded = sum(len(report.changed) for report in reports)
    if as_json:
        print_json({**data, "folded": folded, "plan": _plan_data(sim)})
        return
    line(str(path), style="bold")
    shapes = [
        (direction[:-1], t["name"], t["shape"], t["dtype"])
        for direction in ("inputs", "outputs")
        for t in data[direction]
    ]
    table(
        ("", "name", "shape", "type"),
        [(direction, name, _shape_text(shape), dtype) for direction, name, shape, dtype in shapes],
    )
    ops = ", ".join(f"{count} {op}" for op, count in data["operations"].items())
    line(f"operations  {sum(data['operations'].values())}: {ops}")
    line(f"parameters  {data['parameters']:,} (float constants, running statistics included)")
    for note in data["notes"]:
        line(f"note        {note}")
    _print_plan(sim, folded, cap)


def _graph_data(graph: Graph) -> dict[str, Any]:
    """What the model holds before anything is folded."""
    import math

    operations = Counter(node.op for node in graph.nodes)
    floats = [info for info in graph.weights.values() if info.is_float]
    return {
        "inputs": [_tensor_data(name, graph.tensors[name]) for name in graph.inputs],
        "outputs": [
            _tensor_data(name, graph.tensors[tensor])
            for name, tensor in graph.outputs.items()
            if tensor in graph.tensors  # a constant can be an output
        ],
        "operations": dict(operations.most_common()),
        "parameters": sum(math.prod(info.shape) for info in floats),
        "notes": list(graph.notes),
    }


def _tensor_data(name: str, info: TensorInfo) -> dict[str, Any]:
    shape = None if info.shape is None else list(info.shape)
    return {"name": name, "shape": shape, "dtype": info.dtype}


def _shape_text(shape: list[Any] | None) -> str:
    return "unknown" if shape is None else "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"


def _plan_data(sim: QuantSim) -> dict[str, Any]:
    report = sim.report
    return {
        "target": sim.target.name,
        "counts": report.counts,
        "quantized": [
            {"name": str(site), "kind": placement.kind, "format": str(placement.spec)}
            for site, placement in sim.plan.placements.items()
        ],
        "float": report.left_in_float,
    }


def _print_plan(sim: QuantSim, folded: int, cap: int) -> None:
    report = sim.report
    line()
    folded_text = f" ({folded} batch norms and constants folded first)" if folded else ""
    line(f"target {sim.target.name} would quantize{folded_text}", style="bold")
    kinds = Counter((placement.kind, str(placement.spec)) for placement in sim.plan.placements.values())
    table(
        ("what", "format", "count"),
        [(kind, spec, str(count)) for (kind, spec), count in kinds.items()],
        right=("count",),
    )
    floats = [f"  {name}: {reason}" for name, reason in report.left_in_float.items()]
    line(f"and leave in float: {len(floats) or 'nothing'}", style="bold")
    for text in capped(floats, cap, "  ... and {count} more: --all lists them"):
        line(text)
