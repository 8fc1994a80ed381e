"""The simulator of a quantized model, and all that can be done with it."""

from __future__ import annotations

from isobit.placement.coverage import Coverage
from isobit.quantsim.checks.written import SessionCheck
from isobit.quantsim.encodings_files import read_encodings, write_encodings
from isobit.quantsim.executor import ExecutorLike
from isobit.quantsim.export import ExportResult
from isobit.quantsim.load_encodings import LoadReport
from isobit.quantsim.quantsim import QuantSim
from isobit.quantsim.shown.report import Report
from isobit.quantsim.simulation import Simulation

__all__ = [
    "Coverage",
    "ExecutorLike",
    "ExportResult",
    "LoadReport",
    "QuantSim",
    "Report",
    "SessionCheck",
    "Simulation",
    "read_encodings",
    "write_encodings",
]
