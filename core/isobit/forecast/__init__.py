"""What quantizing a model would bring: told from the graph and the target's table of costs, without data."""

from isobit.forecast.float_pass import FloatPass
from isobit.forecast.forecast import Forecast, NodeForecast, TimeForecast
from isobit.forecast.plan_model import plan
from isobit.forecast.recipe_cost import RecipeForecast

__all__ = [
    "FloatPass",
    "Forecast",
    "NodeForecast",
    "RecipeForecast",
    "TimeForecast",
    "plan",
]
