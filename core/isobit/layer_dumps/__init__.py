"""What every layer computes on one batch, as a file, and what differs between two such files."""

from isobit.layer_dumps.compare_dumps import TensorDifference, compare_dumps
from isobit.layer_dumps.dump import dump
from isobit.layer_dumps.layer_dump import DumpedTensor, LayerDump

__all__ = [
    "DumpedTensor",
    "LayerDump",
    "TensorDifference",
    "compare_dumps",
    "dump",
]
