"""Loops that were held out until the fourth version of the rules was scored on them: 22 of 40 within 2 steps."""
