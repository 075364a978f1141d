"""Data sets of (object image, mask, light) -> shadow: reading, checking, splitting, ordering."""
