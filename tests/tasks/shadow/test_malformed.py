"""Every malformed data set is refused by training and listed by the check, both naming the sample in one line."""

from pathlib import Path

import pytest

from shadowlab.errors import UserError
from shadowlab.tasks.shadow.dataset import open_dataset
from tests.tasks.shadow.checked import check_dataset
from tests.tasks.shadow.malformed import Case, make_all

# What a tar lost is listed too, and so is each member that it has twice.
HAVE_CONSEQUENCES = {"tar_cut_in_data", "tar_cut_between_members", "tar_sample_in_two_files"}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return make_all(tmp_path_factory.mktemp("malformed"))


def refusal(path: Path) -> str:
    """The message with which training stops."""
    try:
        dataset = open_dataset(path, 32)
        for i in range(len(dataset)):
            dataset[i]
    except UserError as error:
        return str(error)
    return "read without an error"


def names_it(line: str, case: Case) -> bool:
    return case.sample in line and case.expect in line and "\n" not in line


def test_there_are_many_distinct_cases(cases: list[Case]) -> None:
    assert len({case.name for case in cases}) == len(cases) >= 32


def test_check_lists_the_problem_naming_the_sample(cases: list[Case]) -> None:
    """One fault, one line."""
    wrong = []
    for case in cases:
        lines = [str(problem) for problem in check_dataset(case.path, 32).problems]
        if not (lines and names_it(lines[0], case)) or (len(lines) > 1 and case.name not in HAVE_CONSEQUENCES):
            wrong.append((case.name, lines))
    assert not wrong


def test_training_refuses_it_naming_the_sample(cases: list[Case]) -> None:
    wrong = [(case.name, message) for case in cases if not names_it(message := refusal(case.path), case)]
    assert not wrong
