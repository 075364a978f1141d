"""Which tests are slow, as measured: writes `tests/slow.txt`, which `make test` leaves out and `make test-all` runs.

Run it on what `python -m pytest --junitxml=FILE` wrote, on a machine that does nothing else:

    python -m scripts.slow_tests FILE
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

SLOW = Path(__file__).parents[1] / "tests" / "slow.txt"
SECONDS = 2.0


def slow_tests(measured: Path, seconds: float) -> list[str]:
    """`tests/room/test_file.py::test_name` of each test with a case, set up and torn down, of more than that."""
    longest: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(measured).iter("testcase"):
        parts = case.get("classname", "").split(".")
        depth = next(i for i, part in enumerate(parts) if part.startswith("test_"))
        file = "/".join(parts[: depth + 1]) + ".py"
        name = "::".join([file, *parts[depth + 1 :], case.get("name", "").split("[")[0]])
        longest[name] = max(longest[name], float(case.get("time", "0")))
    return sorted(name for name, taken in longest.items() if taken > seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="the junit file of a whole run")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    try:
        found = slow_tests(given.measured, given.seconds)
    except (OSError, ElementTree.ParseError, ValueError, StopIteration) as error:
        sys.exit(f"error: {given.measured}: no junit file of these tests ({error})")
    SLOW.write_text("".join(f"{name}\n" for name in found), encoding="utf-8")
    print(f"{SLOW}: {len(found)} tests")


if __name__ == "__main__":
    main()
