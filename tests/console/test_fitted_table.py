"""Tables and sentences at any width: nothing is cut, nothing is wider, names stay whole where they can."""

import io
import re

import pytest
from rich.console import Console, RenderableType
from rich.text import Text

from diagnostics.health import Finding
from diagnostics.records.history import Curve
from shadowlab.checks import Check, PathRow, PathTable
from shadowlab.console.fitted_table import Column, FittedTable
from shadowlab.console.fitted_text import fitted_text, wrapped_text
from shadowlab.console.pace import Pace, duration
from shadowlab.stages.check_forward.report import checks_table, counts, failures, path_table
from shadowlab.stages.check_precision.report import PolicyReport, summary_table
from shadowlab.stages.why.counterfactuals import Outcome
from shadowlab.stages.why.why import _table as why_table
from shadowlab.views.terminal.health import _table as health_table
from shadowlab.views.terminal.inspect import _ranking_table
from shadowlab.views.terminal.ranking import Ranking, Row
from shadowlab.views.terminal.statistic import ALL

LAYER = "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0"  # of SDXL, 62 columns
SENTENCE = "activation headroom 2.95 bits, falling by 0.135 bits a step: overflow at about step 34"
FIX = "run this layer in bfloat16 or float32, lower the learning rate, or normalise what this operator is given"


def printed(table: RenderableType, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False, highlight=False, emoji=False).print(table)
    return file.getvalue()


def health() -> FittedTable:
    return health_table([Finding("headroom", "alarm", 12, SENTENCE, FIX, layer=LAYER)])


def why() -> FittedTable:
    return why_table([Outcome("float32", "float32 weights, states and operators", "finite", FIX, SENTENCE)])


def checks() -> FittedTable:
    return checks_table([Check("conditions reach the model", False, SENTENCE, f"[{LAYER}] is off", FIX)])


def path() -> FittedTable:
    table = PathTable()
    row = PathRow("VAE", "object [-1, 1]", "(B, 4, h, w)", [2, 4, 128, 128], "float32", "float32", -1, 1, True, True)
    table.rows.append(row)
    return path_table(table)


def inspect(width: int) -> FittedTable:
    record = {
        "activation": {"norm": 1.5, "max_abs": 2.5, "num_nonfinite": 3, "fraction_zero": 0.25, "std": 1, "mean": 0}
    }
    row = Row(129, LAYER, 124.5, Curve((1, 2), (1.0, 2.0)), record)
    return _ranking_table(Ranking(ALL[6], 40, (row,), 191, ()), Console(width=width).options)


def precision() -> FittedTable:
    return summary_table([PolicyReport("fp16-pure", 1.0, {}, {}, {LAYER: SENTENCE})])


def words(text: str) -> list[str]:
    return re.findall(r"[^\s:]+", text)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", ["health", "why", "checks", "path", "inspect", "precision"])
def test_no_table_is_wider_than_its_page_nor_loses_a_word(name: str, width: int) -> None:
    table = inspect(width) if name == "inspect" else globals()[name]()
    text, wide = printed(table, width), printed(table, 1000)
    assert max(map(len, text.splitlines())) <= width, text
    whole = "".join(words(text))  # a name that is longer than the line is folded
    headings = {word for column in table._columns for word in words(column.title)}  # a card has none for its head
    lost = [word for word in words(wide) if word not in whole and word not in headings]
    optional = name == "inspect" and width > 60
    assert not lost or optional, lost
    if name in ("health", "checks", "inspect"):
        assert LAYER in whole
    if width >= 80 and name == "health":
        assert any(LAYER in line for line in text.splitlines())  # in one piece


def test_optional_columns_go_from_the_last_on_and_a_card_has_them_all() -> None:
    columns = (Column("name", is_head=True), Column("a"), Column("b", is_optional=True), Column("c", is_optional=True))
    table = FittedTable(columns, title="things")
    table.add_row("x" * 20, "1" * 10, "2" * 10, "3" * 10)
    assert [line.rstrip() for line in printed(table, 80).splitlines()][1].split() == ["name", "a", "b", "c"]
    assert [line.rstrip() for line in printed(table, 50).splitlines()][1].split() == ["name", "a", "b"]
    assert [line.rstrip() for line in printed(table, 30).splitlines()] == [
        "things",
        "x" * 20,
        f"  a {'1' * 10}  b {'2' * 10}",
        f"  c {'3' * 10}",
    ]


def test_markup_in_a_cell_is_text() -> None:
    table = FittedTable((Column("name", is_head=True), Column("what", wraps=True)))
    table.add_row("[red]x[/]", Text("[bold] is no style"))
    assert "[red]x[/]" in printed(table, 60) and "[bold] is no style" in printed(table, 60)


def test_sentences_are_wrapped_at_words_below_their_label_and_commands_are_left_whole() -> None:
    text = f"  cause     {SENTENCE}"
    lines = fitted_text(text, 60).split("\n")
    assert all(len(line) <= 60 for line in lines) and all(line.startswith(" " * 12) for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    for whole in (f"{SENTENCE}: shadowlab why {LAYER}", "x" * 90, "step 3/4  loss 0.25  grad norm 1.5  lr 0.001  " * 2):
        assert fitted_text(whole, 60) == whole
    assert wrapped_text("a b c", 3, indent="- ", hang="  ") == "- a\n  b\n  c"


def test_check_forward_is_summed_up() -> None:
    good = Check("a", True, "1", "1", FIX)
    assert failures([good] * 26) is None and counts([good] * 26) == "26 of 26 checks passed"
    bad, warned = Check("b", False, "1", "2", FIX), Check("c", False, "1", "2", FIX, tolerated=True)
    assert counts([good, bad, warned]) == "1 of 3 checks passed, 1 warning, 1 failed"
    found = failures([good, bad, warned])
    assert found is not None
    text = printed(found, 80)
    assert "FAIL" in text and "WARN" in text and "pass" not in text and text.count("run this layer") == 2


def test_lines_say_speed_and_time_left_and_come_in_time() -> None:
    now = [100.0]
    pace = Pace(1000, 200, clock=lambda: now[0])
    assert not pace.is_overdue() and pace.words(200, "step") == ["0 s"]
    now[0] += 6.0
    assert pace.is_overdue()
    assert pace.words(212, "step") == ["6 s", "2 steps/s", "7 min left"]
    now[0] += 29.0
    assert not pace.is_overdue()
    now[0] += 1.0
    assert pace.is_overdue()
    slow = Pace(10, 0, clock=lambda: now[0])
    now[0] += 40.0
    assert slow.words(2, "step") == ["40 s", "20 s/step", "3 min left"]
    assert slow.words(10, "step")[-1] == "4 s/step" or len(slow.words(10, "step")) == 2
    assert [duration(s) for s in (0, 89, 90, 5399, 12_000, 7200, 300_000)] == [
        "0 s",
        "89 s",
        "2 min",
        "1 h 30 min",
        "3 h 20 min",
        "2 h",
        "3 d 11 h",
    ]


def test_a_name_longer_than_the_line_is_folded_not_cut() -> None:
    table = FittedTable((Column("name", is_head=True), Column("n", is_right=True)))
    table.add_row("a" * 150, "7")
    text = printed(table, 60)
    assert text.count("a") == 150 and "n 7" in text and max(map(len, text.splitlines())) <= 60
