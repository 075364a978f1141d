"""Load a pipeline's folder as somebody without shadowlab would, and draw what it is asked for.

Run as a script: FOLDER WORK. Reads WORK/arguments.npz, whose names are `NUMBER ARGUMENT`; writes WORK/pictures.npz.
"""

import sys
from pathlib import Path


def main(folder: str, work: Path) -> None:
    for name in ("shadowlab", "diagnostics", "cli"):
        sys.modules[name] = None  # type: ignore[assignment]  # whatever is installed here: importing it fails
    import numpy as np
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    with np.load(work / "arguments.npz", allow_pickle=False) as file:
        given = {name: file[name] for name in file.files}
    pictures = {}
    for number in sorted({name.split()[0] for name in given}, key=int):
        own = {name.split()[1]: value for name, value in given.items() if name.split()[0] == number}
        arguments = {name: value if value.ndim else value.item() for name, value in own.items()}
        seed, noises = arguments.pop("seed"), arguments.pop("noises")
        generators = [torch.Generator().manual_seed(seed + i) for i in range(noises)]
        generator = generators[0] if noises == 1 else generators
        pictures[number] = pipe(**arguments, generator=generator, output_type="np")[0][0]
    np.savez(work / "pictures.npz", **pictures)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
