"""torch.compile of the UNet, by the blocks that repeat."""

import os
import shutil

from diffusers import UNet2DConditionModel

from shadowlab.errors import MissingDependencyError

_MOST_PROGRAMS = 64


def compile_blocks(unet: UNet2DConditionModel) -> None:
    """Compile the transformer blocks of `unet`, in place; each at its first call. Parameters keep their names.

    Blocks of one width share their code: SDXL's 70 are two programs. Residual blocks have twelve shapes, each of
    which takes as long to compile as all transformer blocks together.

    Raises:
        MissingDependencyError: there is no C++ compiler.
    """
    _require_compiler()
    import torch._dynamo  # takes seconds

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _MOST_PROGRAMS)
    limits.fail_on_recompile_limit_hit = True  # else what is beyond runs eagerly without a word
    unet.compile_repeated_blocks()


def _require_compiler() -> None:
    """Before the first step finds out."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name):
        raise MissingDependencyError(
            "model.compile: torch.compile needs a C++ compiler (g++, or what CXX names) and there is none; install "
            "one, for example with `apt install g++`, or set model.compile=false"
        )
