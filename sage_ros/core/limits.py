"""How far, how fast, how hard and how abruptly each joint may move, and where these limits come from."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches

import numpy as np

from sage_ros.core.joints import JointLayout

# ros2_control's joint_limits.yaml: the flag, and which bound each of its values is
CONFIGURED = {
    "has_position_limits": {"min_position": "low", "max_position": "high"},
    "has_velocity_limits": {"max_velocity": "velocity"},
    "has_acceleration_limits": {"max_acceleration": "acceleration"},
    "has_jerk_limits": {"max_jerk": "jerk"},
}
# Of the same file, but about nothing that a position command has
UNUSED = {"has_effort_limits", "max_effort", "angle_wraparound"}
STILL = 1e-3  # rad (or the joint's unit): room of a joint that its demonstrations never moved


class LimitError(ValueError):
    """Limits that cannot be used: names the joint, and where they come from."""


@dataclass(frozen=True)
class Bounds:
    """What one source says about one joint; None: nothing. Units: rad (or the joint's), s."""

    low: float | None = None
    high: float | None = None
    velocity: float | None = None
    acceleration: float | None = None
    jerk: float | None = None

    def __and__(self, other: Bounds) -> Bounds:
        """The tightest of both."""
        pairs = {item.name: (getattr(self, item.name), getattr(other, item.name)) for item in fields(self)}
        known = {name: [value for value in pair if value is not None] for name, pair in pairs.items()}
        return Bounds(**{n: (max if n == "low" else min)(values, default=None) for n, values in known.items()})

    def over(self, other: Bounds) -> Bounds:
        """This, and what ``other`` says of what this says nothing about."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return Bounds(**{name: getattr(other, name) if value is None else value for name, value in values.items()})


MOST = Bounds(velocity=2.0, acceleration=12.0, jerk=200.0)  # what safety_filter lets no joint exceed by default


@dataclass(frozen=True, eq=False)
class JointLimits:
    """Limits of A named joints. Raises :class:`LimitError`, naming the joint, on anything but finite sense."""

    names: tuple[str, ...]
    position: np.ndarray  # (A, 2) float64, lowest and highest, rad (or the joint's unit)
    velocity: np.ndarray  # (A,) float64, rad/s, either way
    acceleration: np.ndarray  # (A,) float64, rad/s^2, either way
    jerk: np.ndarray  # (A,) float64, rad/s^3, either way

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise LimitError(f"limits need joint names that differ, got: {', '.join(self.names) or 'none'}")
        shapes = {"position": (len(self), 2), "velocity": (len(self),), "acceleration": (len(self),)}
        shapes["jerk"] = (len(self),)
        for kind, shape in shapes.items():
            values = np.array(getattr(self, kind), dtype=np.float64)  # a copy: nobody else may change it
            if values.shape != shape:
                raise LimitError(f"{kind} limits of {len(self)} joints must be {shape}, but are {values.shape}")
            for name, value in zip(self.names, values, strict=True):
                if not np.isfinite(value).all():
                    raise LimitError(f"joint '{name}': its {kind} limit is not finite: {value}")
                if kind == "position" and not value[0] < value[1]:
                    raise LimitError(f"joint '{name}': its lowest position {value[0]:g} is not below {value[1]:g}")
                if kind != "position" and not value > 0:
                    raise LimitError(f"joint '{name}': its {kind} limit must be > 0, but is {value:g}")
            values.setflags(write=False)
            object.__setattr__(self, kind, values)

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        """A line per joint."""
        rows = zip(self.names, self.position, self.velocity, self.acceleration, self.jerk, strict=True)
        lines = (f"{n}: {p[0]:g} to {p[1]:g}, speed {v:g}, acceleration {a:g}, jerk {j:g}" for n, p, v, a, j in rows)
        return "\n".join(lines)

    def tightened(self, others: Mapping[str, Bounds]) -> JointLimits:
        """These limits and ``others``, by joint name, whichever is tighter. Raises LimitError."""
        unknown = [name for name in others if name not in self.names]
        if unknown:
            raise LimitError(f"no joint {_listed(unknown, self.names)}; there are: {', '.join(self.names)}")
        rows = zip(self.names, self.position, self.velocity, self.acceleration, self.jerk, strict=True)
        mine = {n: Bounds(float(p[0]), float(p[1]), float(v), float(a), float(j)) for n, p, v, a, j in rows}
        return _limits({name: bounds & others.get(name, Bounds()) for name, bounds in mine.items()})


def limits_from_urdf(text: str, joints: Iterable[str] | None = None) -> dict[str, Bounds]:
    """Position and velocity limits of the moving joints of a URDF, or of those among ``joints``.

    Revolute and prismatic joints have both, continuous ones at most a velocity; fixed, floating, planar and mimicking
    joints are left out. As in urdfdom, one of ``lower`` and ``upper`` may be missing and is then 0. Raises LimitError,
    naming the joint.
    """
    wanted = None if joints is None else set(joints)
    found: dict[str, Bounds] = {}
    for joint in _robot(text).findall("joint"):
        name, kind = joint.get("name"), joint.get("type")
        if not name or not kind:
            raise LimitError(f"a joint in the robot description lacks a name or a type: {joint.attrib}")
        if kind not in ("revolute", "prismatic", "continuous") or joint.find("mimic") is not None:
            continue
        if wanted is not None and name not in wanted:
            continue
        if name in found:
            raise LimitError(f"joint '{name}' occurs more than once in the robot description")
        limit = joint.find("limit")
        if limit is not None:
            found[name] = _urdf_bounds(name, kind, limit)
        elif kind != "continuous":
            raise LimitError(f"joint '{name}' is {kind}, but the robot description gives it no <limit>")
    return found


def _robot(text: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise LimitError(f"the robot description is no XML: {error}") from None
    if root.tag != "robot":
        raise LimitError(f"the robot description is no URDF: its root is <{root.tag}>, not <robot>")
    return root


def _urdf_bounds(name: str, kind: str, limit: ElementTree.Element) -> Bounds:
    def number(key: str, default: str | None = None) -> float:
        value = limit.get(key, default)
        if value is None:
            raise LimitError(f"joint '{name}': <limit> in the robot description lacks '{key}'")
        return _number(value, f"joint '{name}': {key} in the robot description (expanded from xacro?)")

    if kind == "continuous":
        return Bounds(velocity=number("velocity"))
    if "lower" not in limit.attrib and "upper" not in limit.attrib:
        raise LimitError(f"joint '{name}': <limit> in the robot description lacks 'lower' and 'upper'")
    return Bounds(number("lower", "0"), number("upper", "0"), number("velocity"))


def limits_from_config(joint: str, values: Mapping[str, float | bool]) -> Bounds:
    """One joint's entry of a joint_limits.yaml. Raises LimitError on unknown names and on a limit without its flag.

    A flag that is false says nothing here: unlike in ros2_control it takes no other source's limit away.
    """
    known = {key for flag, keys in CONFIGURED.items() for key in (flag, *keys)} | UNUSED
    unknown = [key for key in values if key not in known]
    if unknown:
        raise LimitError(f"joint '{joint}': no such limit: {_listed(unknown, known)}")
    bounds: dict[str, float] = {}
    for flag, keys in CONFIGURED.items():
        has = values.get(flag)
        if has is not None and not isinstance(has, bool):
            raise LimitError(f"joint '{joint}': {flag} must be true or false, but is {has!r}")
        given = [key for key in keys if key in values]
        if has is None and given:
            raise LimitError(f"joint '{joint}': {given[0]} is given, but {flag} is not: say true or false")
        for key, bound in keys.items() if has else ():
            if key not in values:
                raise LimitError(f"joint '{joint}': {flag} is true, but {key} is missing")
            bounds[bound] = _number(values[key], f"joint '{joint}': configured {key}")
    return Bounds(**bounds)


def resolve_limits(
    names: Sequence[str],
    urdf: str | None = None,
    configured: Mapping[str, Mapping[str, float | bool]] | None = None,
    defaults: Bounds | None = None,
    policy_range: np.ndarray | None = None,
) -> JointLimits:
    """The limits of the joints ``names``: the tightest that robot description, configuration and policy give.

    ``configured`` is by joint, in the names of ros2_control's joint_limits.yaml; ``policy_range`` (A, 2), in the order
    ``names``, is what the policy was trained to command, widened to ``STILL`` where a joint never moved. ``defaults``
    count only where nothing else says. Raises JointError on repeated names, and LimitError, naming joint and sources,
    on a joint without position limits, on limits that leave no room, and on joints that the robot does not have.
    """
    JointLayout(tuple(names))
    configured = configured or {}
    described = {} if urdf is None else limits_from_urdf(urdf, names)
    has = set(names) if urdf is None else {joint.get("name", "") for joint in _robot(urdf).findall("joint")}
    if lacking := [name for name in names if name not in has]:
        known = ", ".join(sorted(has))
        raise LimitError(f"the robot description has no joint {_listed(lacking, has)}; it has: {known}")
    if strangers := [joint for joint in configured if joint not in has]:
        raise LimitError(f"limits are configured for an unknown joint: {_listed(strangers, has)}")
    if policy_range is not None and np.shape(policy_range) != (len(names), 2):
        raise LimitError(f"the policy's range is {np.shape(policy_range)}, but must be ({len(names)}, 2)")
    resolved = {}
    for row, name in enumerate(names):
        sources = {"robot description": described.get(name, Bounds())}
        sources["configuration"] = limits_from_config(name, configured.get(name, {}))
        if policy_range is not None:
            sources["policy's range"] = _trained(name, *(float(end) for end in policy_range[row]))
        resolved[name] = _intersection(name, sources).over(defaults or Bounds())
    return _limits(resolved)


def _trained(name: str, low: float, high: float) -> Bounds:
    """The policy's range, with room for the noise of an encoder: without any, a joint could not even stay."""
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise LimitError(f"joint '{name}': the policy's range is [{low:g}, {high:g}]")
    spare = max(0.0, STILL - (high - low)) / 2
    return Bounds(low - spare, high + spare)


def _intersection(name: str, sources: Mapping[str, Bounds]) -> Bounds:
    tightest = Bounds()
    for bounds in sources.values():
        tightest &= bounds
    said = {source: b for source, b in sources.items() if b.low is not None and b.high is not None}
    if not said:
        looked = ", ".join(sources)
        raise LimitError(f"joint '{name}' has no position limits (looked into: {looked}): configure them")
    if not tightest.low < tightest.high:  # type: ignore[operator]
        ranges = ", ".join(f"{source} [{b.low:g}, {b.high:g}]" for source, b in said.items())
        raise LimitError(f"joint '{name}' has no room to move: {ranges}")
    return tightest


def _limits(bounds: Mapping[str, Bounds]) -> JointLimits:
    for name, b in bounds.items():
        missing = [item.name for item in fields(b) if getattr(b, item.name) is None]
        if missing:
            raise LimitError(f"joint '{name}' has no limit for: {', '.join(missing)}")
    rows = bounds.values()
    return JointLimits(
        tuple(bounds),
        np.array([(b.low, b.high) for b in rows]),
        np.array([b.velocity for b in rows]),
        np.array([b.acceleration for b in rows]),
        np.array([b.jerk for b in rows]),
    )


def _number(value: object, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise LimitError(f"{what} is {value!r}, but must be a finite number")
    return number


def _listed(unknown: Iterable[str], known: Iterable[str]) -> str:
    """The unknown names, each with the known one that may have been meant."""
    known = list(known)
    close = {name: get_close_matches(name, known, 1) for name in unknown}
    return ", ".join(f"'{n}'" + (f" (meant: '{match[0]}'?)" if match else "") for n, match in close.items())
