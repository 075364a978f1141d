"""Make a run's newest checkpoint a model that ships: averaged weights in float16, configuration, no optimizer.

    python -m scripts.ship_model runs/small shadowlab/assets/models/small --data runs/small-renders

The folder is one that `shadowlab.inference.find_model` opens; its README is written by hand.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from diagnostics.files import replace, replace_text
from shadowlab.inference import find_model
from shadowlab.models import WEIGHTS_NAME
from shadowlab.settings import dump_config, load_kept_config


def ship(run: str, target: Path, data: str) -> int:
    """Write `shadowlab.yaml` and `unet/` into `target`.

    Args:
        run: as `find_model` takes it.
        target: the model's folder; made where it is not there.
        data: what the configuration calls the data set, in place of this machine's path.

    Returns:
        Bytes of the weights.

    Raises:
        ValueError: a weight is too large for float16.
    """
    place = find_model(run)
    source = place.unets.get("ema") or place.unets["raw"]
    weights = {name: tensor.half().contiguous() for name, tensor in load_file(source / WEIGHTS_NAME).items()}
    bad = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ValueError(f"{bad[0]} does not fit float16")
    config = load_kept_config(place.config)
    shipped = config.model_copy(
        update={
            "output_dir": type(config).model_fields["output_dir"].default,
            "data": config.data.model_copy(update={"path": data, "latents": None}),
        }
    )
    (target / "unet").mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "unet" / WEIGHTS_NAME, metadata={"format": "pt"})
    replace(target / "unet" / "config.json", (source / "config.json").read_bytes())
    replace_text(target / "shadowlab.yaml", dump_config(shipped))
    return (target / "unet" / WEIGHTS_NAME).stat().st_size


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a run with a checkpoint")
    parser.add_argument("target", type=Path, help="folder of the model, such as shadowlab/assets/models/small")
    parser.add_argument("--data", required=True, help="what the configuration shall call the data set")
    given = parser.parse_args()
    print(f"{ship(given.run, given.target, given.data) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
