"""What a training will take, before it is begun: memory and work from the shapes, speed from a few timed steps."""

from bdh.planning.comparison import Comparison, Row, compare
from bdh.planning.devices import DevicePlan, Message, on_devices
from bdh.planning.planner import Plan, make
from bdh.planning.speed import Speed, calibrate, why_not
from bdh.planning.terminal import print_comparison, print_devices, print_plan
from bdh.planning.work import TRAINED, Activity

__all__ = [
    "TRAINED",
    "Activity",
    "Comparison",
    "DevicePlan",
    "Message",
    "Plan",
    "Row",
    "Speed",
    "calibrate",
    "compare",
    "make",
    "on_devices",
    "print_comparison",
    "print_devices",
    "print_plan",
    "why_not",
]
