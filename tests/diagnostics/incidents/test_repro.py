"""The script that an incident leaves runs the operator alone, as it was called."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diagnostics.incidents import template
from diagnostics.incidents.repro import write_repro
from diagnostics.tracing import OperatorCall

aten = torch.ops.aten
BY_ROWS = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
CALLS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], str]] = {
    "a result": (aten.log.default, (torch.tensor([1.0, -1.0]),), {}, "aten.log.default: 1 of 2 values"),
    "in place": (aten.div_.Tensor, (torch.ones(3), torch.zeros(3)), {}, "values are not finite, the first is inf"),
    "by keyword": (aten.mean.dim, (torch.zeros(0, 2), [0]), {"keepdim": True}, "2 of 2 values"),
    "a list": (aten._foreach_div.List, ([torch.ones(1)], [torch.zeros(1)]), {}, "1 of 1 values"),
    "complex": (aten.reciprocal.default, (torch.zeros(1, dtype=torch.complex64),), {}, "1 of 1 values"),
    "two results": (aten.var_mean.correction, (BY_ROWS[:, :1], [1]), {"correction": 1}, "2 of 2 values"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_operator_gives_it_again(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    func, args, kwargs, text = CALLS[name]
    write_repro(tmp_path, "nan was born in it", OperatorCall(func, args, kwargs))
    assert template.main(tmp_path / "operator.pt") == 0
    assert text in capsys.readouterr().out


def test_the_script_is_the_template_and_runs_anywhere(tmp_path: Path) -> None:
    """Whatever a name in the headline holds, and where the operator is finite after all."""

    def run(operand: Tensor) -> subprocess.CompletedProcess[str]:
        headline = 'nan came in with batch["""\nimport no_such_module\n\\N]'
        write_repro(tmp_path, headline, OperatorCall(aten.sqrt.default, (operand,), {}))
        command = [sys.executable, "-I", "repro.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    again = run(torch.tensor([-1.0]))
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[0].split()[:4] == ["torch.float32", "(1,)", "min", "-1"]
    finite = run(torch.tensor([1.0]))
    assert (finite.returncode, finite.stdout.splitlines()[-1]) == (1, "aten.sqrt.default: every value is finite here")
    first, _, rest = (tmp_path / "repro.py").read_text().partition("\n")
    assert first.startswith("# nan came in with batch") and rest == Path(template.__file__).read_text()
