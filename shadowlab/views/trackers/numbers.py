"""The numbers of a record under the names that a tracker shows: a function of the records alone."""

from collections.abc import Mapping
from typing import Any

from diagnostics.board import BlockNumbers, block_numbers, run_numbers
from diagnostics.records import rounded


class Numbers:
    """Hand it every record of a run, in order.

    `KIND/KEY` of every number of the record itself, NaN and Inf included, rounded as metrics.jsonl has it; of
    parameters the median, least and largest of each block, for a tracker slows down over thousands of names:
    metrics.jsonl and TensorBoard have every layer.
    """

    def __init__(self) -> None:
        self._blocks = BlockNumbers()

    def learn(self, record: Mapping[str, Any]) -> None:
        """A record that is not shown: blocks keep the numbers that it gave them."""
        self._blocks.learn(record)

    def of(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Name -> number of one record; empty where it is words."""
        found = {name: rounded(value) for name, value in run_numbers(record)}
        parameters: Mapping[str, Mapping[str, float | None]] = record.get("parameters", {})
        if parameters:
            self._blocks.learn(record)
            rows: dict[str, list[Mapping[str, float | None]]] = {}
            for name, values in parameters.items():
                rows.setdefault(self._blocks.group(name), []).append(values)
            for group, own in rows.items():
                found |= {name: rounded(value) for name, value in block_numbers(group, own)}
        return found
