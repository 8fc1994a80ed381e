"""What quantizing a model would bring: told from the graph and the target's table of costs, without data."""

from isobit.forecast.forecast import Forecast, NodeForecast, TimeForecast
from isobit.forecast.plan_model import plan

__all__ = [
    "Forecast",
    "NodeForecast",
    "TimeForecast",
    "plan",
]
