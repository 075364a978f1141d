"""Faults with known origins: what `explain` must say of each, and what must raise no alarm."""
