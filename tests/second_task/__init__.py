"""A second task that differs from the shadow task wherever it can, and all commands on it."""
