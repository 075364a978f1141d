"""A third set of loops that the authors of the rules had not seen."""
