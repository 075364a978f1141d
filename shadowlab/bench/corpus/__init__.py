"""Faults with public sources and benign steps, by phase."""
