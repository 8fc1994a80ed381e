"""The conformance suite: what every backend passes, isobit's own and third parties'.

A backend's test file says how to build the reference networks natively, and inherits the suite:

    class TestMyBackend(BackendConformance):
        @pytest.fixture
        def backend(self): return MyBackend()

        @pytest.fixture
        def build(self): return build_my_model      # isobit.testing.networks.Network -> native model

Network descriptions are in `isobit.testing.networks`, the NumPy reference in `isobit.testing.interpreter`.
"""

from __future__ import annotations

from isobit.testing.conformance.analyzing import AnalyzingConformance
from isobit.testing.conformance.analyzing_layers import LayerAnalyzingConformance
from isobit.testing.conformance.compressing import CompressingConformance
from isobit.testing.conformance.differentiating import DifferentiatingConformance
from isobit.testing.conformance.editing import EditingConformance
from isobit.testing.conformance.export import ExportConformance
from isobit.testing.conformance.front_door import FrontDoorConformance
from isobit.testing.conformance.graphs import GraphConformance
from isobit.testing.conformance.observing import ObservingConformance
from isobit.testing.conformance.pruning import PruningConformance
from isobit.testing.conformance.quantizing import QuantizingConformance
from isobit.testing.conformance.rounding import RoundingConformance
from isobit.testing.conformance.searching import SearchingConformance
from isobit.testing.conformance.techniques import TechniquesConformance


class BackendConformance(
    GraphConformance,
    QuantizingConformance,
    ObservingConformance,
    EditingConformance,
    DifferentiatingConformance,
    ExportConformance,
    RoundingConformance,
    FrontDoorConformance,
    TechniquesConformance,
    AnalyzingConformance,
    LayerAnalyzingConformance,
    CompressingConformance,
    PruningConformance,
    SearchingConformance,
):
    """All parts of the suite."""


__all__ = ["BackendConformance"]
