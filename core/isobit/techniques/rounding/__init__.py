"""Rounding weights to a grid so that the layer's output changes least: from second moments, without the data."""

from __future__ import annotations

from isobit.techniques.rounding.coordinate_descent import coordinate_descent
from isobit.techniques.rounding.gptq_solver import gptq
from isobit.techniques.rounding.grid import Grid
from isobit.techniques.rounding.objective import Objective
from isobit.techniques.rounding.scale_search import fitted_scale, search_scale

__all__ = ["Grid", "Objective", "coordinate_descent", "fitted_scale", "gptq", "search_scale"]
