"""Contracts that a training step keeps, asked of every step of a loop without a reference run: optimizers and
parameters match, what has a gradient moves, calls come in their order, modes, data and ranks are what they seem.

A finite loss says nothing of these. `CONTRACTS` lists them with thresholds, sources and what to change.
"""

from diagnostics.contracts.contract import Contract
from diagnostics.contracts.contracts import Contracts
from diagnostics.contracts.table import CONTRACTS

__all__ = ["CONTRACTS", "Contract", "Contracts"]
