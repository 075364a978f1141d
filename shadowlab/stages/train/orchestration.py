"""The command `train` as a whole: a new run or a resumed one, in this process or in several that it starts.

At once only what a launcher needs is imported: it waits for its processes, and need not load what they load.
"""

import os
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diagnostics.files import append_to
from shadowlab.distributed import (
    crowded,
    launch_processes,
    launched_by_us,
    launched_first,
    launched_processes,
    require_gpus,
)
from shadowlab.errors import InterruptedRunError, LostProcessError
from shadowlab.extras import require_extras
from shadowlab.interruption import signals
from shadowlab.runs import RunFolder, default_name, resume_point, resumed_config, run_to_resume, with_processes
from shadowlab.settings import Config, Request
from shadowlab.workers import require_few_workers

if TYPE_CHECKING:
    from shadowlab.distributed import Processes
    from shadowlab.inference import Starting
    from shadowlab.session import Session
    from shadowlab.stages.result import StageResult


@dataclass(frozen=True)
class _Training:
    """What is to be trained."""

    request: Request
    config: Config
    run: RunFolder | None
    """The run that is resumed; None for a new one."""
    skip_stages: bool
    starting: "Starting | None" = None
    """What a new one starts from, where that is another run."""

    def resuming(self, name: str) -> str:
        """The command that continues the run; config.yaml in its folder holds all other options."""
        words = ["shadowlab", "train", "--run", name, "--resume"]
        if self.config.output_dir != type(self.config)().output_dir:
            words += ["--set", f"output_dir={self.config.output_dir}"]
        return shlex.join([*words, *(["--skip-stages"] if self.skip_stages else [])])


def start_training(request: Request, *, resume: bool = False, skip_stages: bool = False, module: str) -> int:
    """Train, after the required stages have passed.

    Args:
        request: configuration and run that are asked for.
        resume: continue the run that the request names, or the newest of its preset.
        skip_stages: do not ask for passed stages.
        module: whose command line this is: `python -m MODULE train ...` starts each of several processes.

    Returns:
        Exit code: 0, or that of the process that failed first.

    Raises:
        UserError: wrong configuration, data or run, before anything is made; and whatever `run_train` raises.
        InterruptedRunError: the message names the command that continues the run.
        LostProcessError: likewise.
    """
    training = _asked_for(request, resume=resume, skip_stages=skip_stages)
    starts_processes = launched_processes() is None and training.config.distributed.processes > 1
    _find_data(training.config, in_launcher=starts_processes)
    if not starts_processes:
        _train_here(training)
        return 0
    require_gpus(training.config.device, training.config.distributed.processes)
    for warning in crowded(training.config.device, training.config.distributed.processes):
        print(f"warning: {warning}", file=sys.stderr)
    return _train_in_processes(training, module)


def run_train(session: "Session", *, resume: bool = False, proves_checkpoints: bool = True) -> "StageResult":
    """The stage alone, in a run that is open: it is loaded when it is called."""
    from shadowlab.stages.train.train import run_train as run

    return run(session, resume=resume, proves_checkpoints=proves_checkpoints)


def _asked_for(request: Request, *, resume: bool, skip_stages: bool) -> _Training:
    config = request.config()
    if not resume:
        return _Training(request, config, None, skip_stages, _starting(config))
    run = RunFolder.reopen(config, run_to_resume(config, request.run, request.label))
    config = resumed_config(
        run,
        source=None if request.is_default else request.label,
        file=request.config_file,
        options=request.given,
        assignments=request.assignments,
        num_processes=launched_processes(),
    )
    return _Training(request, config, run, skip_stages)


def _starting(config: Config) -> "Starting | None":
    """The run that the weights are of, judged before anything is made."""
    if config.model.weights == "random":
        return None  # what a launcher need not load it does not
    from shadowlab.inference import starting_from

    return starting_from(config)


def _find_data(config: Config, *, in_launcher: bool) -> None:
    """Raise UserError where there are none, too many loader processes, or an extra is missing: a wrong word must not
    wait for stages.

    Of several processes the first one says it; the launcher ends the others.
    """
    if not launched_first():
        return
    require_few_workers(config)
    require_extras(config)
    place = config.data.path
    if not (in_launcher and (os.path.exists(place) or place == type(config.data)().path)):
        from shadowlab.tasks import open_task  # takes seconds, which a launcher need not spend

        open_task(config).find_data()
    if config.data.latents is not None:
        from shadowlab.latents import require_index

        require_index(config)


def _train_here(training: _Training) -> None:
    """Train in this process, alone or as one of several."""
    from shadowlab.session import Session
    from shadowlab.stages.run import finish_stage, open_processes
    from shadowlab.stages.train.required import prove_required_stages

    run, lock = training.run, None
    processes, reporter = open_processes(training.config, training.request, resumed=training.run)
    config = with_processes(training.config, processes.count)
    try:
        with signals.unmasked():
            run = run or _new_run(training, config, processes)
            if training.starting is not None:
                config = run.saved_config()
                reporter.say(f"starting from {training.starting.start.text}")
            with processes.together():
                if processes.is_main:
                    lock = run.claim()
                    reporter.log_to(run.log)
            saved = partial(resume_point, run.checkpoints)
            processes.report_losses_to(run.log, go_on=training.resuming(run.path.name), saved=saved)
            session = Session.open(config, run, processes, reporter)
            prove_required_stages(session, skip=training.skip_stages)
            finish_stage(
                "train",
                session,
                lambda session: run_train(session, resume=training.run is not None),
                write=processes.is_main,
            )
            reporter.say(f"look at it: shadowlab tensorboard {run.path}")
    except (KeyboardInterrupt, InterruptedRunError) as stop:
        if run is None:
            raise
        stopped = str(stop) or f"interrupted; {resume_point(run.checkpoints)}"
        reporter.note(stopped)
        is_saved = getattr(stop, "saved", False)
        error = InterruptedRunError(f"{stopped}; go on with: {training.resuming(run.path.name)}", saved=is_saved)
        error.printed = launched_by_us() and not is_saved  # the launcher knows whether it was asked, or lost one
        raise error from None
    except Exception:
        reporter.close()
        if lock is not None:
            lock.close()
        if run is not None and processes.is_main:
            run.discard()  # a command that is refused leaves nothing
        raise
    finally:
        if lock is not None:
            lock.close()
        reporter.close()
        processes.close()


def _new_run(training: _Training, config: Config, processes: "Processes") -> RunFolder:
    """Its folder, which the first process makes and all of them open."""
    name = training.request.run or processes.share(default_name(training.request.label, "train"))
    made = None
    with processes.together():
        if processes.is_main:
            keeps = None if training.starting is None else training.starting.keep
            made = RunFolder.create(config, name, source=training.request.label, keeps=keeps)
    return made or RunFolder.reopen(config, name)


def _train_in_processes(training: _Training, module: str) -> int:
    """Start the processes, each with the same words as this command was given. Returns their exit code."""
    request = training.request
    given = request.run or default_name(request.label, "train")
    name = given if training.run is None else training.run.path.name
    words = ["train", *request.words(), "--run", name]
    words += ["--resume"] if training.run is not None else []
    words += ["--skip-stages"] if training.skip_stages else []
    run = RunFolder(Path(training.config.output_dir) / name)
    begun = (run.path / "config.yaml").exists
    try:
        code = launch_processes(training.config.distributed.processes, module, words)
    except LostProcessError as lost:
        saved = resume_point(run.checkpoints)
        error = LostProcessError(f"{lost}; {saved}; go on with: {training.resuming(name)}")
        error.printed = lost.printed
        if begun() and not lost.printed:
            with suppress(OSError), append_to(run.log) as log:
                log.write(f"error: {error}\n".encode())
        raise error from None
    except InterruptedRunError:
        code = InterruptedRunError.exit_code
    if code == InterruptedRunError.exit_code:
        going_on = f"{resume_point(run.checkpoints)}; go on with: {training.resuming(name)}"
        raise InterruptedRunError(f"interrupted; {going_on if begun() else 'start it again'}")
    return code
