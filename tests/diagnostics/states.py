"""Everything that a step may change, bit for bit."""

from shadowlab.bench.states import bits_of, state_of

__all__ = ["bits_of", "state_of"]
