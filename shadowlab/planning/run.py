"""plan: what training needs in memory, and, where asked, what it really takes here."""

from collections.abc import Sequence

from shadowlab.console import Reporter
from shadowlab.distributed import pick_device
from shadowlab.errors import UserError
from shadowlab.planning.measure import measured_peaks
from shadowlab.planning.plan import GB, STRATEGIES, DeviceKind, Strategy, plan_memory
from shadowlab.planning.report import format_measured, format_plan, plan_document
from shadowlab.settings import Config

_LEAST_WIDTH, _MOST_WIDTH = 50, 110  # columns


def run_plan(
    config: Config,
    reporter: Reporter,
    *,
    strategies: Sequence[Strategy] | None = None,
    processes: int = 4,
    gpu_memory_gb: float = 80,
    measure: bool = False,
) -> bool:
    """Print the plan, and with `measure` the plan of one process here next to its measured peak.

    Returns whether at least one of the strategies shown fits the GPU; a plan for a CPU always does.
    """
    shards = why_not_sharded(config)
    if shards is not None and "fsdp2" in (strategies or ()):
        raise UserError(f"--strategy fsdp2: {shards}")
    device: DeviceKind = "cpu" if config.device == "cpu" else "cuda"
    gpu_bytes = round(gpu_memory_gb * GB)
    possible = tuple(one for one in STRATEGIES if one != "fsdp2" or shards is None)
    shown, width = strategies or possible, max(_LEAST_WIDTH, min(_MOST_WIDTH, reporter.console.width))
    reporter.say(f"tracing a round of training, {', '.join(shown)}: a minute or two for sdxl")
    plan = plan_memory(config, device=device, processes=processes, strategies=shown)
    reporter.say(format_plan(plan, gpu_bytes, width=width))
    document = plan_document(plan, gpu_bytes)
    if measure:
        here = pick_device(config.device).type
        alone = plan_memory(config, device="cpu" if here == "cpu" else "cuda", strategies=("single",))
        measured = measured_peaks(config)
        reporter.say(f"\none process on {here}:\n{format_measured(alone, measured, width=width)}")
        document["measured"] = {
            "device": here,
            "peaks": measured,
            "plan": {peak.moment: peak.total for peak in alone.strategies[0].peaks},
        }
    fits = device == "cpu" or any(one.needed <= gpu_bytes for one in plan.strategies)
    if not fits:
        reporter.say(_what_to_try(config))
    reporter.result({"fits": fits, **document})
    return fits


def why_not_sharded(config: Config) -> str | None:
    """What of a configuration FSDP2 cannot share, in words; None where it can all."""
    if config.optimizer.name != "adamw8bit":
        return None
    return "the states of adamw8bit cannot be sharded (bitsandbytes#89): take ddp, or --set optimizer.name=adamw"


def _what_to_try(config: Config) -> str:
    """Of what plan has options for; not what the configuration has already."""
    found = [] if config.model.gradient_checkpointing else ["--checkpointing"]
    found += ["a smaller --batch"] if config.train.batch_size > 1 else []
    found += ["a smaller --set data.image_size=N"] if not found else []
    sharing = "" if why_not_sharded(config) else ", or fsdp2 with more --processes"
    return f"nothing shown fits: try {', '.join(found)}{sharing}"
