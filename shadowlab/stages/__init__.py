"""The stages of a run; each proves something before the next begins."""
