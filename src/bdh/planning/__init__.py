"""What a training will take, before it is begun: memory from the shapes, speed from a short calibration."""

from bdh.planning.planner import Comparison, Plan, Speed, calibrate, compare, make
from bdh.planning.terminal import print_comparison, print_plan

__all__ = ["Comparison", "Plan", "Speed", "calibrate", "compare", "make", "print_comparison", "print_plan"]
