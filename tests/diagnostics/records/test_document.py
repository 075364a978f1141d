"""docs/records.md is what the types say."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from diagnostics import History, examine, read_records
from diagnostics.board import rebuild
from diagnostics.records.document import described, document

ROOT = Path(__file__).parents[3]


def test_the_page_is_made_from_the_types() -> None:
    made = "python -m diagnostics.records.document > docs/records.md"
    assert (ROOT / "docs" / "records.md").read_text(encoding="utf-8") == document(), made


def test_a_key_without_a_meaning_is_not_documented() -> None:
    @dataclasses.dataclass
    class Silent:
        said: int
        """What it is."""
        unsaid: int

    with pytest.raises(ValueError, match="Silent: no docstring for unsaid"):
        described(Silent)


def test_the_example_of_the_page_writes_what_rules_and_views_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loop whose first layer receives no gradient: written, judged and drawn as the page says."""
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", document(), re.DOTALL)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    model[0].register_forward_hook(lambda module, inputs, output: output.detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batches = [torch.randn(3, 4) for _ in range(60)]
    names = {"model": model, "optimizer": optimizer, "batches": batches, "num_samples": 180}
    exec(compile(example, "docs/records.md", "exec"), names)
    history = History.read(tmp_path / "metrics.jsonl")
    assert history.layer_names == ("0", "1") and history.parameter_names[0] == "0.weight"
    assert history.parameters("update_ratio").curve("1.weight").last > 0
    found = {(finding.rule, finding.place) for finding in examine(history)}
    assert ("never-updated", "0.weight") in found and "" == capsys.readouterr().out
    rebuild(read_records(tmp_path / "metrics.jsonl"), tmp_path / "board")
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))
