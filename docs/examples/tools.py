"""Tools for `rest chat --tools docs/examples/tools.py`: each public function is one."""

from __future__ import annotations

import math


def calculate_circle_area(radius: float) -> float:
    """Calculate the area of a circle.

    Args:
        radius: The radius of the circle in metres.
    """
    return round(math.pi * radius**2, 2)


def get_current_weather(city: str, unit: str = "celsius") -> dict[str, str]:
    """Get the current weather in a city.

    Args:
        city: The name of the city.
        unit: The unit of the temperature. (choices: ["celsius", "fahrenheit"])
    """
    temperature = {"celsius": "11 °C", "fahrenheit": "52 °F"}[unit]
    return {"city": city, "temperature": temperature, "sky": "cloudy"}
