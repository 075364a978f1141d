"""The mutants of the code apply to the code as it is, lie where they say, and are judged by what a stage names."""

import ast
import json
from collections import Counter
from functools import lru_cache

import pytest
from typer.testing import CliRunner

from cli.main import app
from shadowlab.bench.mutants import (
    CODE_MUTANTS,
    DATA_MUTANTS,
    FAMILIES,
    STAGES,
    CodeMutant,
    Edit,
    MutantReport,
    checked_stages,
)
from shadowlab.bench.mutants.commands import WarmProcess
from shadowlab.bench.mutants.copied_tree import PROJECT, CopiedTree, mutated_sources
from shadowlab.bench.mutants.mutant import PACKAGES
from shadowlab.bench.mutants.places import blamed, failed_checks, is_right, names_the_thing, places_in
from shadowlab.bench.mutants.report import format_table
from shadowlab.bench.mutants.run import run_mutants
from shadowlab.bench.mutants.trial import MutantResult, StageOutcome
from shadowlab.errors import UserError


@lru_cache
def _defined_in(file: str) -> dict[str, list[tuple[int, int]]]:
    return _definitions((PROJECT / file).read_text())


def _sources(mutant: CodeMutant) -> dict[str, str]:
    return {edit.file: (PROJECT / edit.file).read_text() for edit in mutant.edits}


def _definitions(source: str) -> dict[str, list[tuple[int, int]]]:
    """Dotted name of a function, class or module variable -> its first and last lines."""
    found: dict[str, list[tuple[int, int]]] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [node.name]
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                found.setdefault(prefix + name, []).append((node.lineno, node.end_lineno or node.lineno))

    visit(ast.parse(source).body, "")
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_mutant_applies_once_and_still_compiles(family):
    for mutant in FAMILIES[family]:
        sources = _sources(mutant)
        for file, text in mutated_sources(mutant, sources).items():
            assert text != sources[file], mutant.name
            assert file.split("/")[0] in PACKAGES
            compile(text, file, "exec")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_mutant_lies_in_the_function_that_it_names(family):
    for mutant in FAMILIES[family]:
        source = _sources(mutant)[mutant.file]
        edit = mutant.edits[0]
        first = source[: source.index(edit.old)].count("\n") + 1
        first += len(edit.old) - len(edit.old.lstrip("\n"))
        spans = _defined_in(mutant.file).get(mutant.function)
        assert spans, f"{mutant.name}: no {mutant.function} in {mutant.file}"
        assert any(low <= first <= high for low, high in spans), f"{mutant.name}: line {first} is not in {mutant.place}"


def test_every_other_right_answer_exists():
    for mutant in CODE_MUTANTS:
        for other in mutant.also:
            file, function = other.split()
            assert function in _defined_in(file), f"{mutant.name}: {other}"


def test_names_are_unique_and_there_are_enough():
    names = Counter(mutant.name for mutant in (*CODE_MUTANTS, *DATA_MUTANTS))
    assert [name for name, count in names.items() if count > 1] == []
    assert len(CODE_MUTANTS) >= 90 and len(DATA_MUTANTS) >= 25
    assert set(FAMILIES).isdisjoint(names)


def test_code_that_has_changed_is_an_error_that_names_the_mutant():
    mutant = CodeMutant("gone", "f", (Edit("a.py", "no such text", ""),), ("train",))
    with pytest.raises(UserError, match=r"mutant gone: a\.py has 'no such text' 0 times"):
        mutated_sources(mutant, {"a.py": "x = 1\n"})
    twice = CodeMutant("twice", "f", (Edit("a.py", "x", "y"),), ("train",))
    with pytest.raises(UserError, match="2 times"):
        mutated_sources(twice, {"a.py": "x = x\n"})


_MUTANT = CodeMutant(
    "m",
    "Trainee.update_average",
    (Edit("shadowlab/training/trainee.py", "", ""),),
    ("train",),
    also=("shadowlab/training/step.py _step",),
    says=("EMA",),
)


@pytest.mark.parametrize(
    ("text", "is_it"),
    [
        ("shadowlab/training/trainee.py, Trainee.update_average", True),
        ("trainee.py, update_average: saw 3", True),
        ("trainee.py:73, in update_average", True),
        ('File "/tmp/x/shadowlab/training/trainee.py", line 73, in update_average', True),
        ("training/step.py, _step", True),
        ("shadowlab/training/trainee.py, build_trainee", False),
        ("shadowlab/models/trainee.py, update_average", False),
        ("other_trainee.py, update_average", False),
        ("shadowlab/training/trainee.py in update_average", True),
    ],
)
def test_a_place_is_right_in_every_spelling(text, is_it):
    assert [is_right(place, _MUTANT) for place in places_in(text)] == [is_it]


def test_prose_after_a_file_is_no_place():
    assert places_in("its use in shadowlab/training/step.py compares with something else, see step.py") == []


def test_the_first_check_that_names_a_place_counts():
    checks = [
        {"name": "a", "passed": False, "seen": "0.3", "mend": "look"},
        {"name": "b", "passed": True, "seen": "shadowlab/data/order.py, sample_indices", "mend": ""},
        {"name": "c", "passed": False, "tolerated": True, "seen": "shadowlab/data/split.py, split", "mend": ""},
        {"name": "d", "passed": False, "seen": "first at shadowlab/models/flow.py, velocity", "mend": ""},
        {"name": "e", "passed": False, "seen": "shadowlab/models/flow.py, integrate", "mend": ""},
    ]
    assert blamed(failed_checks({"checks": checks})) == [("shadowlab/models/flow.py", "velocity")]
    assert blamed(failed_checks({"error": "no checks"})) == []


def test_a_thing_is_named_by_a_whole_word():
    assert names_the_thing("the EMA does not follow", _MUTANT)
    assert not names_the_thing("a schema", _MUTANT)


def test_a_copy_has_the_fault_inside_and_is_as_before_afterwards(tmp_path):
    tree = CopiedTree.__new__(CopiedTree)
    tree.root = tmp_path
    file = tmp_path / "a.py"
    file.write_text("x = 1\n")
    mutant = CodeMutant("m", "f", (Edit("a.py", "x = 1", "x = 2"),), ("train",))
    inside = ""

    def breaks() -> None:
        nonlocal inside
        with tree.with_fault(mutant):
            inside = file.read_text()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        breaks()
    assert inside == "x = 2\n"
    assert file.read_text() == "x = 1\n"


def test_a_command_runs_the_code_of_the_copy(tmp_path, monkeypatch):
    """A tree in small: each command imports anew what was changed since the last one."""
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "__init__.py").touch()
    main = tmp_path / "cli" / "main.py"
    monkeypatch.setattr("shadowlab.bench.mutants.commands._LIBRARIES", ("json",))
    process = WarmProcess()
    try:
        for number in (1, 2):
            main.write_text(
                "import json, sys\n"
                "def main():\n"
                f"    print(json.dumps({{'number': {number}, 'words': sys.argv[1:]}}))\n"
                f"    sys.exit({number})\n"
            )
            answer = process.run(tmp_path, ["a", "b"], tmp_path, seconds=60, environment={})
            assert (answer.code, answer.document) == (number, {"number": number, "words": ["a", "b"]})
        main.write_text("import time\ndef main():\n    time.sleep(60)\n")
        assert process.run(tmp_path, [], tmp_path, seconds=0.5, environment={}).timed_out
        main.write_text("def main():\n    raise ValueError('no place')\n")
        answer = process.run(tmp_path, [], tmp_path, seconds=60, environment={})
        assert answer.code == 1 and "ValueError: no place" in answer.errors
    finally:
        process.close()


def _result(name: str, stopped: bool, right: bool, family: str = "light") -> MutantResult:
    outcome = StageOutcome("check-forward", stopped, "seen" if stopped else "", right, right, (), 1.0)
    return MutantResult(name, family, "file.py, f", (outcome,))


def test_a_report_passes_where_enough_is_stopped_and_placed():
    quiet = _result("unmutated", False, False)
    stopped = [_result(f"m{i}", True, i < 17) for i in range(20)]
    assert MutantReport(quiet, tuple(stopped)).passed
    assert not MutantReport(_result("unmutated", True, False), tuple(stopped)).passed
    assert not MutantReport(quiet, (*stopped[:18], _result("a", False, False), _result("b", False, False))).passed
    assert not MutantReport(quiet, tuple(_result(f"m{i}", True, i < 16) for i in range(20))).passed
    assert not MutantReport(quiet, ()).passed
    text = format_table(MutantReport(quiet, (*stopped, _result("late", False, False, "step"))))
    assert "survive: late" in text and "unmutated: nothing is said" in text
    json.dumps(MutantReport(quiet, tuple(stopped)).to_json())


def test_a_name_that_is_none_is_answered_with_close_ones():
    with pytest.raises(UserError, match="noise-constant"):
        run_mutants(["noise-konstant"])


def test_stages_are_run_in_their_order_whatever_the_order_of_the_names():
    assert checked_stages(None) == STAGES
    assert checked_stages(["train", "check-forward"]) == ("check-forward", "train")
    with pytest.raises(UserError, match="--stages trane: no stage; there are check-forward"):
        checked_stages(["trane"])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--mutants", "--only", "noise-konstant"], "no mutant or family is called so; close: noise-constant"),
        (["--mutants", "--stages", "trane"], "no stage; there are check-forward"),
        (["--mutants", "--peers"], "other tools are not run on mutants"),
        (["--processes", "2"], "are for --mutants"),
    ],
)
def test_wrong_words_are_answered_in_one_line(words, error, capsys):
    result = CliRunner().invoke(app, ["bench", "silent", *words])
    assert result.exit_code == 2
    assert error in " ".join((result.stderr + capsys.readouterr().err).split())
