"""Exists for stages that wait for ever for each other, and for values that are lost between them."""

import sys

from driver import check, equal, main, run

PROGRAM = sys.argv[1]


def squares(limit, wanted):
    status, out, err = run(PROGRAM, limit, wanted)
    equal((status, err), (0, ""), "status and stderr")
    *lines, last = out.splitlines()
    equal(last, "threads left: 0")
    return sorted(int(line) for line in lines)


@check("without an early exit every stage hands on all it has, and ends")
def _():
    for limit in (0, 1, 2, 5, 1000):
        equal(squares(limit, limit + 1), [n * n for n in range(limit)])


@check("an early exit ends stages that wait for room in a queue that nobody empties, and leaks no thread")
def _():
    for wanted in (0, 1, 2, 5, 100) * 5:
        got = squares(10**15, wanted)
        equal(len(set(got)), wanted, "different squares")
        for each in got:
            equal(round(each**0.5) ** 2, each, "a square")


main()
