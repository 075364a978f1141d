"""The harness next to its specification: samples that are known, functions, metrics, and three training steps.

None of it depends on the user's data or on the size of the model: it proves the code, in the run's own precision.
"""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import shadowlab
from shadowlab.checks import Check
from shadowlab.console import Reporter
from shadowlab.distributed import Processes, SingleProcess, launched_processes
from shadowlab.errors import InterruptedRunError
from shadowlab.latents import encode_dataset
from shadowlab.quantities import Quantity, agreement
from shadowlab.session import Session
from shadowlab.settings import Config
from shadowlab.stages.check_forward.functions_comparison import functions, objective_functions
from shadowlab.stages.check_forward.golden_run import Train, golden_config, plan_of, raw_vae, run_golden
from shadowlab.stages.check_forward.judgement_comparison import judgement
from shadowlab.stages.check_forward.pair import pair_checks
from shadowlab.stages.check_forward.training_comparison import TrainingComparison
from shadowlab.tasks import Task, TaskReference, open_task
from shadowlab.training import build_unet, open_source

_PATIENCE_SECONDS = 600.0  # each process compares by itself, the first one more than the others
_PACKAGE = Path(shadowlab.__file__).parents[1]
STEPS = "three training steps are the reference's"
GOLDEN = "golden samples are read as written"
FUNCTIONS = "functions of numbers are the reference's"
LATENTS = "golden samples are encoded and kept as the reference does"
METRICS = "metrics give known figures"
JUDGED = "average, validation and generation are the reference's"


def step_checks(session: Session, train: Train) -> list[Check]:
    """train: the stage `train`, as a run calls it. Nothing where the task has no reference."""
    reference, device = session.task.reference, session.processes.device
    if reference is None:
        session.reporter.say(f"the task {session.task.name} has no reference: its training step is not compared")
        return []
    quiet = Reporter(active=False)
    with TemporaryDirectory(prefix="shadowlab-golden-") as name:
        folder = Path(name)
        paths = {layout: _written(reference, layout, folder) for layout in reference.layouts}
        layout = reference.layouts[0]
        config = golden_config(session.config, reference, paths[layout], folder)
        task = open_task(config, device)
        checks = [
            guarded(GOLDEN, lambda: _read(config, reference, paths)),
            guarded(FUNCTIONS, lambda: _functions(session.config, config, reference, task)),
            guarded(LATENTS, lambda: _encoded(config, reference, paths[layout], folder, quiet, task)),
            guarded(METRICS, lambda: reference.metrics(task)),
        ]
        if config.precision != "fp16-pure":  # AdamW on float16 weights: what it gives is not what anybody means
            checks += trained(config, SingleProcess(device), train, quiet)
            several = max(session.config.distributed.processes, launched_processes() or 1) > 1
            if several and all(check.passed for check in checks):
                checks += pair_checks(config, trained, train, folder)
    return checks


def guarded(name: str, quantities: Callable[[], Any]) -> Check:
    """`agreement`, where an error is a disagreement at the place that raised it."""
    try:
        return agreement(name, quantities())
    except (KeyboardInterrupt, InterruptedRunError):
        raise
    except Exception as error:
        return failed(name, error)


def failed(name: str, error: Exception) -> Check:
    place, text = place_of(error), " ".join(str(error).split())[:300]
    seen = f"{type(error).__name__}: {text} ({place})"
    return Check(name, False, "no error on samples that are sound", seen, f"see {place}")


def place_of(error: BaseException) -> str:
    """`shadowlab/data/decoding.py, read_mask`: the innermost function of this package that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE / "shadowlab")]
    if not own:
        return "outside of shadowlab"
    return f"{Path(own[-1].filename).relative_to(_PACKAGE).as_posix()}, {own[-1].name}"


def _written(reference: TaskReference, layout: str, folder: Path) -> str:
    (folder / layout).mkdir()
    return reference.write(layout, folder / layout)


def _read(config: Config, reference: TaskReference, paths: dict[str, str]) -> Iterator[Quantity]:
    """By every layout."""
    for layout, path in paths.items():
        data = config.data.model_copy(update={"path": path, "latents": None})
        dataset = open_task(config.model_copy(update={"data": data})).open_data()
        ids = reference.ids(layout)
        yield Quantity(f"ids of the {layout}", "shadowlab/data/indexed.py, IndexedDataset", list(dataset.ids), ids)
        for i, name in enumerate(ids):
            yield from reference.read(layout, name, dataset[i])


def _encoded(
    config: Config, reference: TaskReference, path: str, folder: Path, quiet: Reporter, task: Task[Any]
) -> Iterator[Quantity]:
    """By the task, then by way of the latent cache: what the task encodes wrong is not the cache's fault."""
    latents = config.data.latents or str(folder / "latents")
    data = config.data.model_copy(update={"path": path, "latents": latents})
    cached = config.model_copy(update={"data": data})
    layout = reference.layouts[0]
    ids = reference.ids(layout)
    wanted = reference.parts(reference.encoded(layout, ids, raw_vae(task)))
    dataset = open_task(cached).open_data()
    batch = task.collate([dataset[i] for i in range(len(ids))]).to(task.vae.device)
    own = task.encode(batch, torch.arange(len(ids)))
    for part, (tensor, place) in reference.parts(own.tensors()).items():
        yield Quantity(f"{part} of the samples", place, tensor, wanted[part][0], 1e-4)
    encode_dataset(cached, Path(latents), SingleProcess(task.vae.device), quiet)
    source = open_source(cached, dataset, task, range(len(ids)))
    seen = source.read(range(len(ids)))
    yield Quantity("ids of latents", "shadowlab/latents/reading.py, collate_latents", list(seen.ids), ids)
    for part, (tensor, _) in reference.parts(seen.tensors()).items():
        yield Quantity(f"{part} of the cache", "shadowlab/latents/encode.py, _encode", tensor, wanted[part][0], 1e-4)


def _functions(own: Config, config: Config, reference: TaskReference, task: Task[Any]) -> Iterator[Quantity]:
    objects = reference.objects(reference.layouts[0])
    yield from functions(own, plan_of(config, 1), objects)
    yield from objective_functions(task.objective, reference.objective, config.seed)
    yield from reference.functions(task, raw_vae(task))


def trained(config: Config, processes: Processes, train: Train, quiet: Reporter) -> list[Check]:
    """The golden run of one process, or of one of several, and its comparison."""
    try:
        run = run_golden(config, processes, train, quiet)
        processes.at("comparing with the reference", patience_seconds=_PATIENCE_SECONDS)
        reference = run.task.reference
        model = build_unet(config, run.task.spec, processes.device)
        comparison = TrainingComparison(run, plan_of(config, processes.count), reference, model)
    except (KeyboardInterrupt, InterruptedRunError):
        raise
    except Exception as error:
        return [failed(STEPS, error)]
    steps = guarded(STEPS, comparison.quantities)
    if not steps.passed:  # what follows from its weights means nothing
        return [steps]
    return [steps, guarded(JUDGED, lambda: judgement(comparison))]
