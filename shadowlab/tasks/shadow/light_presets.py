"""Lights by name.

phi: 0 is the right of the picture, 90 behind the object, 180 the left; the shadow falls to the other side. theta: 0 is
straight above, 45 as low as the model knows.
"""

from shadowlab.errors import UserError
from shadowlab.tasks.shadow.light import Light

PRESETS: dict[str, Light] = {
    "morning": (42.0, 20.0, 3.0),  # low, from the right and a little behind: a long shadow to the left
    "noon": (8.0, 90.0, 2.5),  # nearly above: a short one
    "evening": (45.0, 160.0, 4.0),  # as low as can be, from the left: the longest, softer
    "soft": (20.0, 90.0, 8.0),  # the largest light: an overcast sky, or a softbox
}


def preset_light(name: str) -> Light:
    """theta, phi and size of a preset.

    Raises:
        UserError: there is none of this name.
    """
    if name not in PRESETS:
        raise UserError(f"light {name!r}: there is {', '.join(PRESETS)}")
    return PRESETS[name]
