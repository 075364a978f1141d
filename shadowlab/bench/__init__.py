"""Measurements of the harness itself, side by side with its peers."""
