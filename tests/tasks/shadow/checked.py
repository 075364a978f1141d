"""The check of a data set in this process, as tests ask for it."""

from pathlib import Path

import torch

from shadowlab.console import Reporter
from shadowlab.distributed import SingleProcess
from shadowlab.examination import CheckReport, Selection, check_data
from shadowlab.settings import load_config


def check_dataset(path: Path | str, image_size: int | None = None, quick: int | None = None) -> CheckReport:
    report = check_data(
        load_config(),
        str(path),
        SingleProcess(torch.device("cpu")),
        Reporter(active=False),
        image_size=image_size,
        selection=Selection(quick),
    )
    assert report is not None, "of the only process"
    return report
