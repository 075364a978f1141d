"""The statistics of a run's records by name, and which of their values ask for attention."""

import difflib
import re
from dataclasses import dataclass

from diagnostics.records import PARTS, STATISTICS, History, LayerTable
from shadowlab.errors import UserError

PARAMETER = "parameter"


@dataclass(frozen=True)
class Statistic:
    """One number of every layer, or of every parameter tensor."""

    part: str
    """`activation` or `gradient` of layers, or `parameter`."""
    key: str
    """Of their records: `norm`."""

    @property
    def name(self) -> str:
        return f"{self.part}.{self.key}"

    @property
    def noun(self) -> str:
        """What has this number."""
        return "parameter" if self.part == PARAMETER else "layer"

    @property
    def smallest_first(self) -> bool:
        """Whether small values are the ones to look at: a layer without headroom overflows next."""
        return self.key == "headroom_bits"

    def names(self, history: History) -> tuple[str, ...]:
        """Of the layers or parameters of a run."""
        return history.parameter_names if self.part == PARAMETER else history.layer_names

    def table(self, history: History) -> LayerTable:
        return history.parameters(self.key) if self.part == PARAMETER else history.layers(self.key, self.part)


ALL = (
    *(Statistic(part, key) for part in PARTS for key in STATISTICS),
    *(Statistic(PARAMETER, key) for key in ("gradient_norm", "update_ratio")),
)
# Full names, those of the TensorBoard groups (gradient_norm is a layer's, parameter_gradient_norm a parameter's), and
# the key alone, which means the activation's.
_BY_NAME = (
    {"headroom": ALL[STATISTICS.index("headroom_bits")], "update_ratio": ALL[-1]}
    | {one.key: one for one in ALL if one.part == "activation"}
    | {f"{part}_headroom": Statistic(part, "headroom_bits") for part in PARTS}
    | {one.name.replace(".", "_"): one for one in ALL}
)


def find_statistic(name: str) -> Statistic:
    """The statistic of that full or short name; dots, spaces, hyphens and underscores are alike.

    Raises:
        UserError: there is none; names the nearest, and all there are.
    """
    plain = re.sub(r"[\s.\-]+", "_", name.strip().lower())
    if plain in _BY_NAME:
        return _BY_NAME[plain]
    nearest = difflib.get_close_matches(plain, _BY_NAME, 1, cutoff=0.0)[0]
    raise UserError(
        f"--by {name}: no such statistic; the nearest is `{_BY_NAME[nearest].name}`; there are "
        f"{', '.join(one.name for one in ALL)} (an activation's without `activation.`, `headroom` for headroom_bits)"
    )
