"""plan: what training needs in memory, and, where asked, what it really takes here."""

from collections.abc import Sequence

from shadowlab.console import Reporter
from shadowlab.distributed import pick_device
from shadowlab.planning.measure import measured_peaks
from shadowlab.planning.plan import GB, STRATEGIES, DeviceKind, Strategy, plan_memory
from shadowlab.planning.report import format_measured, format_plan, plan_document
from shadowlab.settings import Config


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
    device: DeviceKind = "cpu" if config.device == "cpu" else "cuda"
    gpu_bytes = round(gpu_memory_gb * GB)
    shown = strategies or STRATEGIES
    reporter.say(f"tracing a round of training, {', '.join(shown)}: a minute or two for sdxl")
    plan = plan_memory(config, device=device, processes=processes, strategies=shown)
    reporter.say(format_plan(plan, gpu_bytes))
    document = plan_document(plan, gpu_bytes)
    if measure:
        here = pick_device(config.device).type
        alone = plan_memory(config, device="cpu" if here == "cpu" else "cuda", strategies=("single",))
        measured = measured_peaks(config)
        reporter.say(f"\none process on {here}:\n{format_measured(alone, measured)}")
        document["measured"] = {
            "device": here,
            "peaks": measured,
            "plan": {peak.moment: peak.total for peak in alone.strategies[0].peaks},
        }
    fits = device == "cpu" or any(one.needed <= gpu_bytes for one in plan.strategies)
    if not fits:
        reporter.say("nothing shown fits: try --checkpointing, a smaller --batch, or fsdp2 with more --processes")
    reporter.result({"fits": fits, **document})
    return fits
