"""A part of a model as sessions of its own: a few nodes, from given values, with the quantizers among them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.encodings import Encoding
from isobit.errors import ModelError
from isobit.graph import Graph, Input, Site
from isobit_onnx.qdq.writer import insert_quantizers
from isobit_onnx.read.initializers import has_large_weights
from isobit_onnx.run.session import Session, own_arrays
from isobit_onnx.translate.sites import bind
from isobit_onnx.translate.translate import NativeNodes, Translation

#: Sessions kept of a part: one with the quantizers that most runs have, and one with switches. Of a model with large
#: weights, of which each session holds copies, the last alone.
_KEPT_SESSIONS, _KEPT_OF_LARGE = 2, 1


class _Opened(NamedTuple):
    """A session, the name that each output has in it, and its quantizers, which are the same objects as long.

    `switches` are the inputs that say which of them are on; without any all are.
    """

    session: Session
    names: Mapping[str, str]
    encodings: Mapping[Site, Encoding]
    switches: Mapping[Site, str]


class ModelPart:
    """The nodes of a model that lead from the inputs of a part of its graph to the outputs.

    What they need beside, as a size that is taken from another tensor, comes along, as far as the model's inputs.
    """

    def __init__(self, model: ir.Model, translation: Translation, part: Graph, providers: Sequence[str]) -> None:
        """Raises ModelError where the part is not bounded by its inputs."""
        self.graph, self._providers = part, providers
        self._values = {name: translation.values[name] for name in part.tensors}
        self._translation = Translation(part, self._values)
        inputs = list(dict.fromkeys(self._values[name] for name in part.inputs))
        outputs = list(dict.fromkeys(self._values[name] for name in part.outputs))
        try:
            graph = ir.convenience.extract(model.graph, inputs, outputs)
        except ValueError as error:
            raise ModelError(f"the part cannot be run alone: {error}") from error
        self._model = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
        self._most = _KEPT_OF_LARGE if has_large_weights(model) else _KEPT_SESSIONS
        self._sessions: OrderedDict[Hashable, _Opened] = OrderedDict()

    def run(
        self, encodings: Mapping[Site, Encoding], off: Collection[Site], given: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """The outputs by tensor, in front of their quantizers, with those of `encodings` that the part reads.

        Where some of these are off and some on, others will be soon: one session has all of them, with a switch each.
        """
        read = {site: encoding for site, encoding in encodings.items() if self._reads(site)}
        on = {site: encoding for site, encoding in read.items() if site not in off}
        is_switched = 0 < len(on) < len(read)
        written = read if is_switched else on
        key = is_switched, *((site, id(encoding)) for site, encoding in written.items())
        if key not in self._sessions:
            while len(self._sessions) >= self._most:
                self._sessions.popitem(last=False)
            self._sessions[key] = self._opened(written, is_switched=is_switched)
        self._sessions.move_to_end(key)
        opened = self._sessions[key]
        feeds = {self._values[name]: given[name] for name in self.graph.inputs}
        feeds.update((name, np.array(site in on)) for site, name in opened.switches.items())
        made = own_arrays(opened.session.run(feeds))
        return {name: made[opened.names[name]] for name in self.graph.outputs}

    def _reads(self, site: Site) -> bool:
        if isinstance(site, Input):
            return self.graph.has_site(site)
        return self.graph.has_site(site) and bool(self.graph.uses(site.name))

    def _opened(self, encodings: Mapping[Site, Encoding], *, is_switched: bool) -> _Opened:
        model = self._model.clone()
        nodes = NativeNodes(model)
        places = {site: bind(nodes, self._translation, site) for site in encodings}
        sources = {value.name: value for value in model.graph.outputs}
        try:
            placed = [(places[site], encoding) for site, encoding in encodings.items()]
            inserted = insert_quantizers(model, placed, is_switched=is_switched)
        except KeyError as error:  # a constant that a body of an operation reads, and the part has no other reader of
            raise ModelError(f"the part cannot be run alone: {error.args[0]}") from error
        for name, made in inserted.quantized.items():
            if name in sources:
                sources[name] = made.source
        model.graph.outputs[:] = list(sources.values())
        names = {name: sources[self._values[name]].name or "" for name in self.graph.outputs}
        switches = {site: inserted.switches[place] for site, place in places.items() if is_switched}
        return _Opened(Session(model, self._providers, is_short=True), names, encodings, switches)
