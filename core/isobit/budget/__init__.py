"""What a network costs, what compression could save of it and at which error, and what to choose under a budget."""

from __future__ import annotations

from isobit.budget.candidate import Candidate, Choice
from isobit.budget.cost import UNITS, Cost
from isobit.budget.cost_model import layer_costs, weighted_cost
from isobit.budget.pareto import pareto
from isobit.budget.select_ratios import SELECTIONS, CurvePoint, Pick, Selection, curve, select_ratios

__all__ = [
    "SELECTIONS",
    "UNITS",
    "Candidate",
    "Choice",
    "Cost",
    "CurvePoint",
    "Pick",
    "Selection",
    "curve",
    "layer_costs",
    "pareto",
    "select_ratios",
    "weighted_cost",
]
