"""Loops that were held out until the third version of the rules was scored on them: 21 of 46 within 2 steps."""
