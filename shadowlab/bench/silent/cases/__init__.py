"""Loops that the authors of the rules could read; modules go by what is wrong, `healthy` has nothing wrong."""
