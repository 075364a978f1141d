"""The light: swapped, clamped, in another unit, not periodic, mirrored; and augmentation that leaves it behind."""

from shadowlab.bench.mutants.mutant import Stage, mutant

_LIGHT = "shadowlab/tasks/shadow/light.py"
_VECTOR = f"{_LIGHT} light_vector"
_EMBEDDED = (f"{_LIGHT} embed_light", "shadowlab/tasks/shadow/task.py ShadowTask._embedded")
_TURN = "torch.remainder(phi, 360.0) / 180.0 * math.pi,"
_JOINED = "return torch.cat([_harmonics(angle) for angle in angles], dim=1)"
_READ = f"{_LIGHT} read_light"
_AUGMENTATION = "shadowlab/tasks/shadow/augmentation.py"
_FLIP = "--set data.augment.flip=0.5"
_ALL: tuple[Stage, ...] = ("check-forward", "data check", "overfit", "train")
_DATA = ("shadowlab/tasks/shadow/folder.py _read_entry", "shadowlab/tasks/shadow/pictures.py make_sample")

LIGHT = (
    mutant(
        "theta-and-phi-exchanged",
        _VECTOR,
        "theta, phi, size = light.unbind(dim=1)",
        "phi, theta, size = light.unbind(dim=1)",
        also=_EMBEDDED,
    ),
    mutant(
        "theta-clamped", _VECTOR, "(theta - THETA_RANGE[0])", "(theta.clamp(max=22.5) - THETA_RANGE[0])", also=_EMBEDDED
    ),
    mutant("theta-from-the-horizon", _VECTOR, "(theta - THETA_RANGE[0])", "(THETA_RANGE[1] - theta)", also=_EMBEDDED),
    mutant("phi-in-degrees", _VECTOR, _TURN, "torch.remainder(phi, 360.0),", also=_EMBEDDED),
    mutant("phi-not-periodic", _VECTOR, _TURN, "torch.remainder(phi, 360.0) / 360.0 * math.pi,", also=_EMBEDDED),
    mutant(
        "phi-mirrored-in-the-code", _VECTOR, _TURN, "torch.remainder(-phi, 360.0) / 180.0 * math.pi,", also=_EMBEDDED
    ),
    mutant(
        "phi-off-by-half-a-turn",
        _VECTOR,
        _TURN,
        "torch.remainder(phi + 180.0, 360.0) / 180.0 * math.pi,",
        also=_EMBEDDED,
    ),
    mutant(
        "phi-of-half-a-turn-alone", _VECTOR, _TURN, "torch.remainder(phi, 180.0) / 180.0 * math.pi,", also=_EMBEDDED
    ),
    mutant(
        "phi-by-its-cosine-alone",
        f"{_LIGHT} _harmonics",
        "weight * phase.sin()",
        "weight * phase.cos()",
        also=(_VECTOR, *_EMBEDDED),
    ),
    mutant("size-ignored", _VECTOR, "(size - SIZE_RANGE[0])", "(0.0 * size)", also=_EMBEDDED, says=("size",)),
    mutant(
        "theta-and-size-exchanged",
        _VECTOR,
        _JOINED,
        _JOINED.replace("in angles]", "in reversed(angles)]"),
        also=_EMBEDDED,
    ),
    mutant(
        "light-rounded-when-read",
        _READ,
        "light.append(float(value))",
        "light.append(float(round(value / 15) * 15) if key != 'size' else float(value))",
        stages=_ALL,
        also=_DATA,
    ),
    mutant(
        "light-of-the-first-sample-read",
        "shadowlab/tasks/shadow/pictures.py make_sample",
        "light=torch.tensor(entry.values, dtype=torch.float32)",
        "light=torch.tensor((20.0, *entry.values[1:]), dtype=torch.float32)",
        stages=_ALL,
        also=_DATA,
        says=("theta",),
    ),
    mutant(
        "phi-turned-when-read",
        _READ,
        "return (light[0], light[1], light[2])",
        "return (light[0], (light[1] + 90.0) % 360.0, light[2])",
        stages=_ALL,
        also=_DATA,
        says=("phi",),
    ),
    mutant(
        "phi-mirrored-when-read",
        _READ,
        "return (light[0], light[1], light[2])",
        "return (light[0], (360.0 - light[1]) % 360.0, light[2])",
        stages=_ALL,
        also=_DATA,
        says=("phi",),
    ),
    mutant(
        "flip-leaves-the-light",
        f"{_AUGMENTATION} mirrored",
        "light=mirrored_light(sample.light)",
        "light=sample.light",
        options=_FLIP,
        also=(f"{_AUGMENTATION} ShadowAugmentation.sample",),
        says=("flip",),
    ),
    mutant(
        "flip-leaves-the-shadow",
        f"{_AUGMENTATION} mirrored",
        "shadow=sample.shadow.flip(-1)",
        "shadow=sample.shadow",
        options=_FLIP,
        also=(f"{_AUGMENTATION} ShadowAugmentation.sample",),
        says=("flip",),
    ),
    mutant(
        "flip-turns-phi-the-wrong-way",
        f"{_LIGHT} mirrored_light",
        "torch.remainder(180.0 - phi, 360.0)",
        "torch.remainder(-phi, 360.0)",
        options=_FLIP,
        also=(f"{_AUGMENTATION} mirrored", f"{_AUGMENTATION} ShadowAugmentation.sample"),
        says=("flip",),
    ),
    mutant(
        "intensity-not-told",
        "shadowlab/tasks/shadow/task.py ShadowTask._embedded",
        "intensity = light[:, 3] if light.shape[1] > 3 else torch.ones(len(light))",
        "intensity = torch.ones(len(light))",
        options="--set data.augment.intensity=0.5",
        also=(f"{_LIGHT} embed_intensity",),
        says=("intensity",),
    ),
    mutant(
        "intensity-not-applied",
        f"{_AUGMENTATION} ShadowAugmentation.sample",
        "sample = replace(sample, shadow=sample.shadow * light[3])",
        "sample = replace(sample, shadow=sample.shadow)",
        options="--set data.augment.intensity=0.5",
        says=("intensity",),
    ),
)
