"""README.md of an export: what it is, how it is used, and under which terms, as far as they are known."""

import os
import re
from pathlib import Path
from typing import Any

import shadowlab
from shadowlab.inference import LoadedModel
from shadowlab.models import embedded_parameters
from shadowlab.plain_text import plain_text
from shadowlab.runs import start_of
from shadowlab.settings import Config
from shadowlab.tasks import Exported, PipelineCode

# Hub ids whose terms are known -> (licence, what to say of it).
_KNOWN = {
    "stabilityai/stable-diffusion-xl-base-1.0": (
        "openrail++",
        "CreativeML Open RAIL++-M, as Stable Diffusion XL 1.0, from which they were trained; its use restrictions go "
        "along with every copy",
    ),
    "stabilityai/sdxl-vae": ("mit", "MIT"),
    "madebyollin/sdxl-vae-fp16-fix": ("mit", "MIT"),
}
_HUB_ID = re.compile(r"([\w-][\w.-]{0,95}/[\w-][\w.-]{0,95})(/[\w.-]+)?", re.ASCII)
_CODE_LICENCE = "Apache-2.0, as shadowlab"


def pipeline_card(model: LoadedModel, exported: Exported) -> str:
    """The model card of a diffusers folder."""
    code = exported.code
    licence, base = _terms(model)[0], _hub_id(model.config.model.weights)
    tags = [model.config.task, "shadowlab", *(("rectified-flow", "one-step") if code.folder is not None else ())]
    trust = "" if code.folder is None else ", trust_remote_code=True"
    head = [
        "library_name: diffusers",
        "pipeline_tag: image-to-image",
        f"license: {licence}",
        *([f"base_model: {base}"] if base else []),
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    body = [
        f"# {_name(model)}: {code.title}",
        code.summary,
        f"```bash\npip install {code.needs}\n```",
        f"```python\nimport torch\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("FOLDER"{trust})  # this folder, or its hub id\n'
        'pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")\n'
        '# pipe = pipe.to("cuda", torch.float16): half the memory; the VAE stays in float32\n\n'
        f"{code.usage}\n```",
        _code_note(code),
        f"## The model\n\n{_facts(model)}\n\n{code.limits}",
        f"## Licence\n\n{_licence_note(model)}",
        f"Written by `shadowlab export` {shadowlab.__version__}. shadowlab itself opens this folder, too, by "
        "`shadowlab.yaml`: `shadowlab evaluate FOLDER`, `shadowlab generate FOLDER`.",
    ]
    return "\n".join(["---", *head, "---", "", "\n\n".join(body), ""])


def _code_note(code: PipelineCode) -> str:
    if code.folder is None:
        own = f"The pipeline is diffusers' own `{code.pipeline[1]}`"
        return f"{own}: no code is in this folder. All weights are safetensors."
    unet = () if code.unet[0] == "diffusers" else (f"unet/{code.unet[0]}",)
    files = [f"`{name}.py`" for name in (code.pipeline[0], *code.neighbours, *unet)]
    kind = "no pipeline of this kind" if not unet else "no pipeline and no UNet of this kind"
    return (
        f"`trust_remote_code=True` lets diffusers run {' and '.join(files)} of this folder, for it has {kind}. They "
        "are short, import diffusers, torch, numpy and pillow alone, and open no connection: read them first. All "
        "weights are safetensors."
    )


def programs_card(model: LoadedModel, exported: Exported, description: dict[str, Any]) -> str:
    """README.md of a folder of programs. description: what programs.json says."""
    one_step, decoder = description["programs"]["one_step"], description["programs"]["decoder"]
    side, usage = description["image_size"], _onnx_usage if description["format"] == "ONNX" else _torch_usage
    rows = [f"| `{one['name']}` | {one['shape']} | {one['meaning']} |" for one in one_step["inputs"]]
    body = [
        f"# {_name(model)}: {exported.code.title}, as {description['format']}",
        exported.code.summary,
        f"Two programs, float32: `{one_step['file']}` takes noise and inputs to latents in one step, "
        f"`{decoder['file']}` takes latents to the {exported.output}, {exported.output_text}. No other code is needed. "
        "`programs.json` says the same to machines.",
        "\n".join(["| input | shape | meaning |", "|---|---|---|", *rows]),
        f"B is 1 to {description['batch'][1]}; H and W are multiples of {description['multiple_of']}, at least "
        f"{description['least_side']}. The model was trained at {side} x {side} pixels: bring a picture there without "
        "a change of its proportions, with the background's value around it.",
        f"```python\n{usage(description)}\n```",
        f"## The model\n\n{_facts(model)}\n\n{exported.code.limits}",
        f"## Licence\n\n{_licence_note(model)}",
        f"Written by `shadowlab export` {shadowlab.__version__}.",
    ]
    return "\n\n".join([*body, ""])


def _torch_usage(description: dict[str, Any]) -> str:
    one_step, decoder = description["programs"]["one_step"], description["programs"]["decoder"]
    named = ", ".join(one["name"] for one in one_step["inputs"])
    return (
        "import torch\n\n"
        f'one_step = torch.export.load("{one_step["file"]}").module()\n'
        f'decoder = torch.export.load("{decoder["file"]}").module()\n'
        f"with torch.no_grad():\n    {decoder['output']['name']} = decoder(one_step({named}))"
    )


def _onnx_usage(description: dict[str, Any]) -> str:
    one_step, decoder = description["programs"]["one_step"], description["programs"]["decoder"]
    named = ", ".join(f'"{one["name"]}": {one["name"]}' for one in one_step["inputs"])
    return (
        "import onnxruntime\n\n"
        f'one_step = onnxruntime.InferenceSession("{one_step["file"]}")\n'
        f'decoder = onnxruntime.InferenceSession("{decoder["file"]}")\n'
        f"(latents,) = one_step.run(None, {{{named}}})  # numpy arrays\n"
        f'({decoder["output"]["name"]},) = decoder.run(None, {{"latents": latents}})'
    )


def _name(model: LoadedModel) -> str:
    """Of the run's folder, without the folders around it: they are nobody's business."""
    return _plain(model.name.replace("\\", "/").rsplit("/", 1)[-1])


def _facts(model: LoadedModel) -> str:
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.unet.parameters())
    weights = {
        "ema": "averaged (EMA)",
        "raw": "of the last step, not averaged",
        "exported": "as it was exported before",
    }
    rows = [
        ("UNet", f"{parameters:,} parameters, {weights[model.weights]}"),
        *([("trained for", f"{model.step:,} steps")] if model.step is not None else []),
        ("trained from", _origin(config)),
        ("VAE", f"{model.task.vae.num_parameters:,} parameters, {_source(config.model.vae_source, 'random weights')}"),
        ("picture size", f"{config.data.image_size} x {config.data.image_size} pixels"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _origin(config: Config) -> str:
    start = start_of(config)
    if start is None:
        return _source(config.model.weights, "random weights")
    return f"the run `{_plain(Path(start.run).name)}`" + ("" if start.step is None else f", step {start.step:,}")


def _source(source: str, random: str) -> str:
    """A source of weights for a card that others read: a folder of this machine by its last part."""
    if source == "random":
        return random
    if embedded_parameters(source) is not None:
        return "embedded in shadowlab"
    return f"`{_hub_id(source) or _plain(Path(source).name)}`"


def _hub_id(source: str) -> str | None:
    """`owner/name`, where the source is one and no folder of this machine."""
    found = _HUB_ID.fullmatch(source)
    return None if found is None or os.path.exists(source) else found[1]


def _plain(text: str) -> str:
    """A name of somebody's choice, in one line without what would be markup."""
    return re.sub(r"[`|<>\[\]*#]", "", plain_text(" ".join(text.split())))[:80]


def _terms(model: LoadedModel) -> tuple[str, str]:
    """The licence of the UNet's weights as the hub writes it, and what to say of it."""
    base = _hub_id(model.config.model.weights)
    if base in _KNOWN:
        return _KNOWN[base]
    if base is not None:
        return "unknown", f"those of `{base}`, from which they were trained; read them there and name them here"
    return "unknown", "not stated: whoever trained them names their terms here before passing them on"


def _licence_note(model: LoadedModel) -> str:
    source = model.config.model.vae_source
    hub = _hub_id(source)
    if embedded_parameters(source) is not None:
        vae = "Apache-2.0, as shadowlab"
    elif hub in _KNOWN:
        vae = _KNOWN[hub][1]
    else:
        vae = f"those of `{hub}`" if hub else "not stated"
    return (
        f"Code: {_CODE_LICENCE}. Weights of the UNet: {_terms(model)[1]}. Weights of the VAE: {vae}. The data that a "
        "model was trained on may add terms of their own."
    )
