"""A page on this machine: drop an object, move the light, see its shadow."""

from shadowlab.demo.serve import run_demo

__all__ = ["run_demo"]
