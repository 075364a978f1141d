"""What the small VAE is trained on: windows of shadow maps and object images, shifted, flipped and turned.

Legend: B batch, C channels, side the height and width of a window in pixels.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from shadowlab.data import sample_indices
from shadowlab.seeding import derive_seed, generator
from shadowlab.tasks.shadow import Sample

_OBJECT_SHARE = 0.25  # of each batch; object images are the easier half
_CONTENT = 0.02  # shadow above which a pixel counts as content
_MAX_SHIFT = 8  # pixels: one latent cell, so that edges meet every phase of the 8-pixel grid


def training_pictures(
    read: Callable[[int], Sample], indices: Sequence[int], step: int, batch_size: int, side: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Augmented shadow maps (M, 1, side, side) in [0, 1] and object images (N, 3, side, side) in [-1, 1], M + N = B."""
    num_objects = max(1, round(_OBJECT_SHARE * batch_size))
    num_shadows = batch_size - num_objects
    rng = generator(seed, "vae-augment", step)
    shadows = []
    for i in sample_indices(step * num_shadows, num_shadows, len(indices), derive_seed(seed, "vae-shadows")):
        shadow = read(indices[i]).shadow
        shadows.append(window(shadow, shadow > _CONTENT, side, rng))
    objects = []
    for i in sample_indices(step * num_objects, num_objects, len(indices), derive_seed(seed, "vae-objects")):
        sample = read(indices[i])
        gain = 0.6 + 0.8 * float(torch.rand((), generator=rng))
        brighter = (((sample.object_image + 1.0) * gain).clamp(0.0, 2.0) - 1.0) * sample.mask  # background stays 0
        objects.append(window(brighter, sample.mask > 0.0, side, rng))
    return torch.stack(shadows), torch.stack(objects)


def window(picture: Tensor, content: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """A random flip and quarter turn of a (C, side, side) window of `picture` (C, H, W), beyond which is 0.

    content: (1, H, W) bool.

    A full-size window is the picture shifted by at most `_MAX_SHIFT`; a smaller one holds a random content pixel.
    """
    size = picture.shape[-1]
    places = content[0].nonzero()
    if side < size and len(places):
        place = places[int(torch.randint(len(places), (), generator=rng))]
        corner = place - torch.randint(0, side, (2,), generator=rng)
    else:
        corner = torch.randint(-_MAX_SHIFT, size - side + _MAX_SHIFT + 1, (2,), generator=rng)
    top, left = (int(n) for n in corner)
    picture = F.pad(picture, (-left, left + side - size, -top, top + side - size))
    flip, turns = (int(n) for n in torch.randint(0, 4, (2,), generator=rng))
    return torch.rot90(picture.flip(-1) if flip % 2 else picture, turns, dims=(-2, -1))
