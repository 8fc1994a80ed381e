"""What is kept of the tensors of a run: mergeable reducers, and how they are fed."""

from __future__ import annotations

from isobit.statistics.channel_means import ChannelMeans
from isobit.statistics.channel_moments import ChannelMoments
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram
from isobit.statistics.layer_rows.gram import Gram
from isobit.statistics.layer_rows.patches import Patches
from isobit.statistics.layer_rows.rows import Rows
from isobit.statistics.min_max import MinMax
from isobit.statistics.moments import Moments
from isobit.statistics.observe_tensor import observe_tensor
from isobit.statistics.observer import Observer, Request, Stage, Wants
from isobit.statistics.reducer import Reducer
from isobit.statistics.sampling import Sampling, sample, sampling_of
from isobit.statistics.statistics import Statistics
from isobit.statistics.watched import Watched

__all__ = [
    "ChannelMeans",
    "ChannelMoments",
    "ChannelRange",
    "Gram",
    "Histogram",
    "MinMax",
    "Moments",
    "Observer",
    "Patches",
    "Reducer",
    "Request",
    "Rows",
    "Sampling",
    "Stage",
    "Statistics",
    "Wants",
    "Watched",
    "observe_tensor",
    "sample",
    "sampling_of",
]
