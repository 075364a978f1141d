"""Loops that were kept from the authors of the rules until the first score was taken."""
