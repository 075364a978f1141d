"""A command that raises ends with one readable text and the right exit code."""

import pytest
import typer

from cli.errors import reports_errors
from diagnostics import NonFiniteError, Verdict


@pytest.mark.parametrize(("rank", "is_said_here"), [(None, True), (0, True), (1, False)])
def test_a_bad_value_is_a_failed_check_and_said_by_the_rank_where_it_was_born(
    rank: int | None, is_said_here: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")

    @reports_errors
    def command() -> None:
        raise NonFiniteError(Verdict("forward", "invalid", "out_of_domain", op="sqrt", step=6, rank=rank))

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == 1
    assert ("nan was born in sqrt, phase forward of step 7" in capsys.readouterr().err) == is_said_here
