"""Whether cross-attention is told the empty prompt, for every task that tells it nothing else.

Legend: B batch, N tokens, E width of cross-attention.
"""

from torch import Tensor

from shadowlab.checks import Check
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.seeding import normal
from shadowlab.settings import Config
from shadowlab.tasks.prompt import NUM_TOKENS, computed, empty_prompt, own_file, text_encoder_folder

TOKEN_LIMITS = (-100.0, 100.0)
"""Of a text encoder's last norm; Stable Diffusion's reach 28."""


def prompt_is_right(told: Tensor, config: Config, file: str | None) -> Check:
    """What cross-attention is told, (B, N, E), next to what the text encoder says now; the same for all samples.

    file: that holds the embedding, as `empty_prompt`.
    """
    told = told.float().cpu()
    differ = bool((told != told[:1]).any())
    weights, width = config.model.weights, told.shape[-1]
    name, fix = "cross-attention is told the empty prompt", "see shadowlab/tasks/prompt.py"
    if file is not None:
        wanted, source = empty_prompt(weights, width, file=file, seed=config.seed), file
    elif (own := own_file(weights)) is not None:
        wanted, source = empty_prompt(weights, width, file=str(own), seed=config.seed), own.name
    elif weights == "random":
        wanted, source = normal((NUM_TOKENS, width), config.seed, "empty-prompt"), "random numbers of the seed"
    else:
        try:
            wanted, source = computed(text_encoder_folder(weights, downloads=False)), "as the text encoder says it now"
        except (UserError, MissingDependencyError) as error:
            return Check(name, False, "a text encoder that loads", str(error), fix)
    same_shape = wanted.shape == told[0].shape
    off = float((told[0] - wanted).abs().amax()) if same_shape else float("inf")
    return Check(
        name,
        not differ and same_shape and off <= 1e-4,
        f"{tuple(wanted.shape)}, the same for every sample ({source})",
        f"{tuple(told.shape[1:])}, off by {off:.2g}{', samples differ' if differ else ''}",
        "remove the kept embedding (shadowlab's cache folder, prompts/), or correct task_options.empty_prompt",
    )
