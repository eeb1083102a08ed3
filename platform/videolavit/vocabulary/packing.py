"""Documents of different lengths into rows of one length."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Puts each document into the row where it leaves the least room, the longest documents first.

    Best-fit decreasing needs at most 22 % more rows than the best packing, and rarely more than one row more with
    documents as short as ours. Which documents share a row depends on the lengths alone.

    Args:
        lengths: Of each document, at most `capacity`.
        capacity: Of a row.

    Returns:
        Indices of the documents of each row.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        assert lengths[index] <= capacity, "a document fits into a row"
        place = bisect_left(open_rows, (lengths[index], -1))
        if place == len(open_rows):
            rows.append([])
            room, row = capacity, len(rows) - 1
        else:
            room, row = open_rows.pop(place)
        rows[row].append(index)
        insort(open_rows, (room - lengths[index], row))
    return rows
