"""Exists for deadlines, causes and values that get lost on their way between processes, and for work that goes on
where nobody waits for it."""

import contextlib
import re
import signal
import statistics
import sys

from driver import Log, check, equal, finish, main, started

PROGRAM = sys.argv[1]
LONG = 3_600_000  # milliseconds


@contextlib.contextmanager
def serving(*next):
    with started(PROGRAM, "serve", *next) as process:
        with Log(process) as log:
            yield process, log, int(process.stdout.readline().split()[1])


@contextlib.contextmanager
def servers():
    """A server that works, one that lets it, and their logs."""
    with serving() as (worker, work_log, port):
        with serving(port) as (middle, middle_log, port):
            yield worker, work_log, middle, middle_log, port


def call(port, timeout, work):
    return started(PROGRAM, "call", port, timeout, work)


def id_and_deadline(process):
    when, id, what = re.fullmatch(r"(\S+) (\S+) (.*)\n", process.stderr.readline()).groups()
    return id, float(what.removeprefix("waits until "))


@check("work that is done in time is done, under the caller's id")
def _():
    with servers() as (_, work_log, _, middle_log, port), call(port, LONG, 1) as caller:
        id, _ = id_and_deadline(caller)
        equal(finish(caller)[:2], (0, "worked\n"))
        for log in (middle_log, work_log):
            log.says(id, "begins")
            log.says(id, "ends")


@check("a deadline of 100 ms set in one process ends the work in a third, not early")
def _():
    late = []
    with servers() as (_, work_log, _, middle_log, port):
        for _ in range(20):
            with call(port, 100, LONG) as caller:
                id, deadline = id_and_deadline(caller)
                status, out, _ = finish(caller)
                equal(status, 4, "DEADLINE_EXCEEDED")
                if any(line[1] == id for line in work_log.lines):  # else it was over before it got there
                    late.append(work_log.says(id, "is cut short")[0] - deadline)
    print(f"deadline of 100 ms: the work ended {1e3 * statistics.median(late):.2f} ms after it (median of {len(late)}), "
          f"{1e3 * max(late):.2f} ms (worst)")
    assert min(late) >= 0, f"{min(late)} s"


@check("the caller's signal cancels the work in the third process")
def _():
    with servers() as (_, work_log, _, middle_log, port), call(port, LONG, LONG) as caller:
        id, _ = id_and_deadline(caller)
        work_log.says(id, "begins")
        caller.send_signal(signal.SIGINT)
        status, out, _ = finish(caller)
        equal(status, 1, "CANCELLED")
        assert out.startswith("received SIGINT"), out
        for log in (middle_log, work_log):
            log.says(id, "is cut short: canceled by the caller")


@check("the caller's death cancels the work in the third process")
def _():
    with servers() as (_, work_log, _, middle_log, port), call(port, LONG, LONG) as caller:
        id, _ = id_and_deadline(caller)
        work_log.says(id, "begins")
        caller.kill()
        for log in (middle_log, work_log):
            log.says(id, "is cut short: canceled by the caller")


@check("a server that is shut down ends what it was asked for, and what it asked for")
def _():
    with servers() as (_, work_log, middle, middle_log, port), call(port, LONG, LONG) as caller:
        id, _ = id_and_deadline(caller)
        work_log.says(id, "begins")
        middle.send_signal(signal.SIGTERM)
        equal(finish(caller)[0], 1, "CANCELLED")
        middle_log.says(id, "is cut short: received SIGTERM")
        work_log.says(id, "is cut short: canceled by the caller")
        equal(middle.wait(60), 0, "status")


main()
