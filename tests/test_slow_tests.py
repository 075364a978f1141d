"""The list of slow tests is of tests that there are: one that was renamed would be run with the quick ones."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.slow_tests import SLOW, slow_tests

ROOT = SLOW.parents[1]


def test_each_that_is_listed_is_there():
    gone = []
    for line in SLOW.read_text(encoding="utf-8").split():
        file, *_, name = line.split("::")
        path = ROOT / file
        if not path.is_file() or not re.search(rf"def {re.escape(name)}\b", path.read_text(encoding="utf-8")):
            gone.append(line)
    assert not gone, "python -m pytest --junitxml=FILE, then python -m scripts.slow_tests FILE"


def test_a_test_is_as_slow_as_its_slowest_case(tmp_path: Path):
    suite = ElementTree.Element("testsuite")
    cases = [("tests.room.test_a", "test_x[1]", 0.5), ("tests.room.test_a", "test_x[2]", 3.0)]
    cases += [("tests.room.test_a.TestB", "test_y", 2.5), ("tests.test_c", "test_z", 1.9)]
    for kind, name, seconds in cases:
        ElementTree.SubElement(suite, "testcase", classname=kind, name=name, time=str(seconds))
    file = tmp_path / "junit.xml"
    ElementTree.ElementTree(suite).write(file)
    assert slow_tests(file, 2.0) == ["tests/room/test_a.py::TestB::test_y", "tests/room/test_a.py::test_x"]
    with pytest.raises(FileNotFoundError):
        slow_tests(tmp_path / "absent.xml", 2.0)
