"""What was found, in words."""

from __future__ import annotations

import math

from isobit.analysis.findings import SiteError
from isobit.graph.graph import Graph


def describe(graph: Graph, error: SiteError) -> str:
    """A site that hurts: what it is, what reads it, how much of the error it makes, and why."""
    if error.kind == "activation":
        what = f"{error.name}{_feeding(graph, error)} with {_scales(error)}"
    else:
        what = f"{error.name}, {_article(error.kind)} of {error.node} ({error.op}), as {error.format}"
    parts = [what, f"{percent(error.share)} of the error, most of it {_cause(error)}"]
    return "; ".join(parts)


def _article(kind: str) -> str:
    return {"weight": "the weight", "constant": "a constant"}.get(kind, kind)


def _feeding(graph: Graph, error: SiteError) -> str:
    names = {reader.rpartition(" (")[0] for reader in error.readers}
    readers = [node for node in graph.nodes if node.name in names]
    depthwise = [node for node in readers if node.op == "Conv" and int(node.attributes.get("group", 1)) > 1]
    if depthwise:
        return f" feeds a depthwise layer ({depthwise[0].name})" if len(readers) == 1 else " feeds depthwise layers"
    if len(readers) == 1:
        return f" feeds {readers[0].name} ({readers[0].op})"
    return f" feeds {len(readers)} operations" if readers else " leaves the model"


def _scales(error: SiteError) -> str:
    grid = f"[{error.grid[0]:.4g}, {error.grid[1]:.4g}]"
    if error.channels > 1 and error.cause == "channel spread":
        return f"one scale for {error.channels} channels"
    if len(error.sites) > 1:
        return f"the range {grid}, which {len(error.sites)} tensors share"
    return f"the range {grid}"


def _cause(error: SiteError) -> str:
    seen = f"values reach from {error.seen[0]:.4g} to {error.seen[1]:.4g}"
    if error.cause == "clipping":
        return f"clipping: {seen}, and {percent(error.outside)} of them are cut off"
    if error.cause == "wide range":
        return f"from a range that is too wide: {seen}"
    if error.cause == "channel spread":
        return "channel spread: most channels are far smaller than the largest"
    if error.cause == "mean shift":
        return "a shift of the mean (bias)"
    return "rounding: the format has too few levels"


def ratio_text(value: float) -> str:
    """``34.2 dB``; ``no error`` where it is infinite."""
    return "no error" if value == math.inf else f"{value:.1f} dB"


def percent(share: float) -> str:
    """A share with two digits where it is small."""
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.2g} %"
