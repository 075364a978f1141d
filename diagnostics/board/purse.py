"""Bytes that a run of any length may write: a credit at its beginning, then less with every record, without end."""


class Purse:
    """What has come in after n records is `credit + total * n / (n + spread)`, so never more than `credit + total`.

    Early records get `total / spread` bytes each, those at n = 9 spread a hundredth of that: what costs the same every
    time is written at steps that lie ever further apart, and never stops.
    """

    def __init__(self, *, credit: int, total: int, spread: int, debt: int = 0) -> None:
        """Bytes, and `spread` in records.

        Args:
            debt: that may be made for what must not be missed; paid back by what comes in.
        """
        self._credit, self._total, self._spread, self._debt = credit, total, spread, debt
        self._num_records = 0
        self.spent = 0

    @property
    def bound(self) -> int:
        """Bytes that are never exceeded, however long the run."""
        return self._credit + self._total + self._debt

    def pour(self) -> None:
        """A record came."""
        self._num_records += 1

    def allows(self, size: float, *, in_debt: bool = False) -> bool:
        """Whether `size` bytes may be spent now."""
        came_in = self._credit + self._total * self._num_records / (self._num_records + self._spread)
        return self.spent + size <= came_in + (self._debt if in_debt else 0)

    def spend(self, size: int) -> None:
        self.spent += size

    def take(self, size: int, *, in_debt: bool = False) -> bool:
        """Spend `size` bytes where that is allowed; whether it was."""
        allowed = self.allows(size, in_debt=in_debt)
        if allowed:
            self.spent += size
        return allowed
