"""What a checkpoint will take and give, before any weight is read: `handlens plan`."""

from handlens_export.forecast.choose import Limits, choose
from handlens_export.forecast.device import Device, find, names
from handlens_export.forecast.forecast import Forecast, Prompt, Speed, forecast

__all__ = ["Device", "Forecast", "Limits", "Prompt", "Speed", "choose", "find", "forecast", "names"]
