"""The fixes of all cases, by the case's name."""

from tests.diagnostics.tracing.fixes import before, behind, kinds, loops, samples, within
from tests.diagnostics.tracing.fixes.applied import Fix

FIXES: dict[str, Fix] = before.FIXES | within.FIXES | behind.FIXES | loops.FIXES | kinds.FIXES | samples.FIXES
