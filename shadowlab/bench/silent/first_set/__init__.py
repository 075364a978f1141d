"""Loops that were held out until the second version of the rules was scored on them: 19 of 29 within 2 steps."""
