"""The user's data as batches by input: which array is which input, how whole sets are cut, what a batch must be."""

from isobit.data.arrays import is_array, numpy_type, to_numpy
from isobit.data.dataset import Batch, Dataset
from isobit.data.example import example_by_name, example_of
from isobit.data.example_record import example_from_record, example_to_record

__all__ = [
    "Batch", "Dataset", "example_by_name", "example_from_record", "example_of", "example_to_record", "is_array",
    "numpy_type", "to_numpy",
]  # fmt: skip
