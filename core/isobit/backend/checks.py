"""Checks of what a backend is asked to quantize, before it changes anything."""

from __future__ import annotations

from collections.abc import Mapping

from isobit.encodings.encoding import Encoding
from isobit.errors import EncodingError
from isobit.graph.graph import Graph
from isobit.graph.sites import Input, Site, Tensor, Weight

_KINDS = {Tensor: "tensor", Weight: "weight", Input: "input"}


def check_quantizers(graph: Graph, encodings: Mapping[Site, Encoding | None]) -> None:
    """Raise EncodingError for a site that the graph does not have, or an encoding that does not fit its constant."""
    for site, encoding in encodings.items():
        if encoding is None:
            continue
        if not graph.has_site(site):
            raise EncodingError(f"the graph has no {_KINDS[type(site)]} {str(site)!r} to quantize")
        name = graph.node(site.node).input(site.index) if isinstance(site, Input) else site.name
        if name is not None and name in graph.weights:
            try:
                encoding.broadcast(graph.weights[name].shape)
            except EncodingError as error:
                raise EncodingError(f"{str(site)!r}: {error}") from error
