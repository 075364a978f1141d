"""Faults put on purpose into the tiny shadow model, so that a user sees what each looks like."""
