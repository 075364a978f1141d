"""What `bench explain-cost` says of a loop: a row for each subject, and growth that stays within its bound."""

from shadowlab.bench.explain_cost import CostReport, CostRow, format_table, recurrent


def row(name: str, cpu_ratio: float) -> CostRow:
    return CostRow(name, cpu_ratio, cpu_ratio, 0.1, 20.0)


def test_a_row_above_its_bound_fails_the_report_and_says_so() -> None:
    report = CostReport([row("loop", 19.0), row("fault", 21.0)], 1, 1, "2", 1.0)
    assert not report.passed
    [missed] = [line for line in format_table(report).splitlines() if "MISSED" in line]
    assert missed.startswith("fault")


def test_time_that_grows_faster_than_the_step_fails_the_report() -> None:
    assert CostReport([row("loop", 10.0)], 1, 1, "2", 1.1).passed
    assert not CostReport([row("loop", 10.0)], 1, 1, "2", 2.0).passed


def test_a_subject_can_be_explained_again_after_its_nan_is_put_back() -> None:
    for _ in range(2):
        for fault, cause in ((None, None), ("first token", "bad_data"), ("loss", "out_of_domain")):
            subject = recurrent(4, 8, fault)
            subject.step()
            subject.put_back()
            verdict = subject.explained()
            assert (verdict and verdict.cause) == cause
