"""Every case of the corpus, faults by phase and benign steps last."""

from shadowlab.bench.corpus import (
    attention,
    averaging,
    backward,
    benign,
    data,
    forward,
    gradients,
    loss,
    masks,
    optimizer,
    scaling,
    state,
    structure,
)
from shadowlab.bench.corpus.case import Fault

FAULTS: tuple[Fault, ...] = (
    *state.FAULTS,
    *data.FAULTS,
    *attention.FAULTS,
    *forward.FAULTS,
    *loss.FAULTS,
    *backward.FAULTS,
    *gradients.FAULTS,
    *scaling.FAULTS,
    *optimizer.FAULTS,
    *averaging.FAULTS,
    *structure.FAULTS,
    *masks.FAULTS,
    *benign.FAULTS,
)
