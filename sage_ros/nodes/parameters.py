"""A node's ROS parameters, declared from the dataclass that the node reads."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

Config = TypeVar("Config")


def declare(node: Node, config: type, prefix: str = "", defaults: Any = None) -> None:
    """Declare every field of ``config`` as ``prefix + name``, described and range-checked.

    ``defaults`` is an instance of ``config`` whose values replace the dataclass's defaults.
    """
    instance = config() if defaults is None else defaults
    for item in fields(config):
        meta = item.metadata
        low, high, choices = meta["low"], meta["high"], meta["choices"]
        value = getattr(instance, item.name)
        descriptor = ParameterDescriptor(description=meta["description"])
        if choices:
            descriptor.additional_constraints = f"one of: {', '.join(map(repr, choices))}"
        if low is not None and isinstance(value, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
        elif low is not None:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
        node.declare_parameter(prefix + item.name, value, descriptor)


def read(node: Node, config: type[Config], prefix: str = "", changes: dict[str, Any] | None = None) -> Config:
    """The parameters as an instance of ``config``; ``changes`` (by full name) go before the node's values.

    Raises ValueError, naming the fields, if a value is not allowed.
    """
    changes = changes or {}
    names = [item.name for item in fields(config)]  # type: ignore[arg-type]
    values = {n: changes.get(prefix + n, node.get_parameter(prefix + n).value) for n in names}
    return config(**values)
