"""Whether shadowlab can work on this machine: what is here, and a self-test. What is wrong comes with its fix."""

from shadowlab.doctor.examination import Examination, examine
from shadowlab.doctor.item import Item

__all__ = ["Examination", "Item", "examine"]
