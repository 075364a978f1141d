"""The nodes of examples/comfyui, called as ComfyUI calls them, on an exported pipeline."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from shadowlab.inference import LoadedModel, load_generator
from tests.inference.made import disk, picture

FOLDER = Path(__file__).parents[2] / "examples" / "comfyui"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The folder, imported as ComfyUI imports what lies in custom_nodes/."""
    spec = importlib.util.spec_from_file_location("custom_nodes_shadowlab", FOLDER / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, f"{spec.name}.nodes", sys.modules[f"{spec.name}.nodes"])
    return module


def called(node: type, **given: Any) -> tuple[Any, ...]:
    """With the defaults of its inputs for those that are not given, and nothing that it does not declare."""
    declared = node.INPUT_TYPES()["required"]
    defaults = {name: one[1]["default"] for name, one in declared.items() if len(one) > 1 and "default" in one[1]}
    choices = {name: one[0][0] for name, one in declared.items() if isinstance(one[0], list)}
    assert given.keys() <= declared.keys()
    return getattr(node(), node.FUNCTION)(**(choices | defaults | given))


def test_nodes_from_the_folder_to_a_composite(
    nodes: ModuleType, folder: Path, own_modules: None, model: LoadedModel
) -> None:
    load, cast, composite = (
        nodes.NODE_CLASS_MAPPINGS[f"Shadowlab{name}"] for name in ("LoadPipeline", "CastShadow", "Composite")
    )
    with pytest.raises(ValueError, match="turn on trust_remote_code"):
        called(load, folder=str(folder))
    (pipeline,) = called(load, folder=str(folder), trust_remote_code=True)

    image = torch.from_numpy(np.stack([picture(40, 60, seed) for seed in range(3)]).astype(np.float32) / 255)
    mask = torch.from_numpy(disk(40, 60, 4).astype(np.float32) / 255)
    shadow, shown = called(cast, pipeline=pipeline, image=image, mask=mask, phi=200.0, seed=9)
    assert shadow.shape == (3, 40, 60) and shown.shape == (3, 40, 60, 3) and shadow.dtype == torch.float32
    for row in range(3):
        wanted = load_generator(model).generate(picture(40, 60, row), mask.numpy(), 30.0, 200.0, 4.0, seed=9)
        assert np.abs(shadow[row].numpy() - wanted).max() <= 1e-5
    turned, _ = called(cast, pipeline=pipeline, image=image, mask=1 - mask, mask_is_background=True, phi=200.0, seed=9)
    assert (turned - shadow).abs().max() <= 1e-5

    ground = torch.full((1, 40, 60, 3), 0.8)
    given = {"background": ground, "image": image, "mask": mask[None], "shadow": shadow}
    (whole,) = called(composite, **given, intensity=0.0)
    solid, empty = mask == 1, mask == 0
    assert whole.shape == (3, 40, 60, 3)
    assert torch.equal(whole[:, solid], image[:, solid]) and torch.equal(
        whole[:, empty], ground[:, empty].expand(3, -1, -1)
    )
    (dark,) = called(composite, **given, intensity=1.0)
    assert torch.allclose(dark[:, empty], (0.8 * (1 - shadow[:, empty]))[..., None].expand(-1, -1, 3))
    with pytest.raises(ValueError, match="sizes differ"):
        called(composite, **{**given, "shadow": shadow[:, :20]})


def test_every_node_declares_what_comfyui_reads(nodes: ModuleType) -> None:
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node, node.FUNCTION)) and node.CATEGORY and isinstance(node.RETURN_TYPES, tuple)
