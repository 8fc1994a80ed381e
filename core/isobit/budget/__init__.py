"""What a network costs, what compression could save of it and at which error, and what to choose under a budget."""

from __future__ import annotations

from isobit.budget.candidate import Candidate, Choice
from isobit.budget.cost import UNITS, Cost
from isobit.budget.cost_model import layer_costs, weighted_cost

__all__ = ["UNITS", "Candidate", "Choice", "Cost", "layer_costs", "weighted_cost"]
