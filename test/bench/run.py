#!/usr/bin/env python3
"""Runs the benchmarks in turn, several rounds, and prints what they say as tables in Markdown.

    test/bench/run.py [options] PROGRAM...

The programs are those that test/bench/meson.build makes, known by their names: cost and timer measure
ctx, go_cost and go_timer the same in Go. What is not given is left out of the tables. `meson compile -C
build bench` calls this with all of them.

In each round, every operation is measured in ctx, in Go and as built from std::stop_source, one after
another, each in a process of its own, so that whatever else the machine does meets all three alike. A
table shows the medians of the rounds. It passes no judgement but for marking what is short of the
targets; the exit status says only whether everything ran.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass

sys.dont_write_bytecode = True  # the source tree stays as it is
import plot


@dataclass
class Row:
    """An operation of cost.cpp and cost.go."""

    name: str
    label: str
    target: float = 0  # Go's time divided by ours is to be at least this
    of_raw: float = 0  # our time divided by raw is to be at most this
    large: bool = False  # left out of --quick


def sized(name, label, sizes, targets={}):
    def number(size):
        return f"{size:,}"

    return [
        Row(f"{name}={size}", label.format(number(size)), targets.get(size, 0), large=size > 10_000)
        for size in sizes
    ]


DECADES = [10**exponent for exponent in range(7)]
DEPTHS = [10, 20, 30, 50, 100]

ROWS = [
    ("One context", [
        Row("with_cancel/root", "`with_cancel` under background: create, cancel, destroy", 1.5),
        Row("with_cancel/parent", "the same under a cancelable parent", 1.5),
        Row("with_timeout/root", "`with_timeout(1h)` under background", 3),
        Row("with_timeout/parent", "the same under a cancelable parent", 2.5),
    ]),
    ("Asking", [
        Row("done/live", "`done()`, live", 5, of_raw=1.2),
        Row("done/canceled", "`done()`, canceled"),
        Row("err/live", "`err()`, live", 5),
        Row("err/canceled", "`err()`, canceled", 5),
        *sized("value/depth", "`value()`, missing key, depth {}", [10, 100], {10: 3, 100: 1.4}),
        *sized("with_value/depth", "building and dropping a chain of {} values", [10, 100]),
    ]),
    ("Many contexts, time for each", [
        *sized("create/children", "creating {} children of one parent", [100_000], {100_000: 1.5}),
        *sized("cancel/children", "canceling that parent, {} children", [100_000, 1_000_000],
               {100_000: 1.2, 1_000_000: 1.2}),
        *sized("destroy/children", "dropping those {} canceled children", [100_000]),
        *sized("cancel/chain", "canceling a chain of {}", [100_000], {100_000: 3}),
        *sized("arm/timers", "{} timers: arm, `with_timeout(30min to 90min)`", [1_000, 1_000_000],
               {1_000_000: 3}),
        *sized("disarm/timers", "{} timers: disarm, canceling in random order", [1_000, 1_000_000],
               {1_000_000: 2}),
        *sized("arm/live", "1,000 timers armed beside {} others", [1_000, 1_000_000]),
        *sized("disarm/live", "1,000 timers disarmed in random order beside {} others", [1_000, 1_000_000]),
        *sized("with_timeout/live", "`with_timeout(1h)` created and canceled beside {} others", [1_000, 1_000_000]),
    ]),
    ("Two threads, time per operation over both", [
        Row("with_cancel/root/threads=2", "`with_cancel` under background", 1.5),
        Row("with_cancel/parent/threads=2", "`with_cancel` under a shared parent", 1.2),
        Row("with_timeout/root/threads=2", "`with_timeout(1h)` under background", 1.5),
        Row("with_timeout/parent/threads=2", "`with_timeout(1h)` under a shared parent", 1.5),
    ]),
    ("Memory", [
        Row("bytes/child", "a live child of one parent: on the heap, in bytes", 0.6),
        Row("bytes/timeout", "a live timeout: on the heap, in bytes", 0.9),
    ]),
    ("Go's own benchmarks, as far as not above", [
        Row("common_parent_cancel", "CommonParentCancel, all cores"),
        *sized("with_timeout/concurrency", "WithTimeout, 10 made and canceled, {} live, all cores",
               [40, 4_000, 400_000]),
        *(Row(f"cancel_tree/depth={depth}/root={root}", f"CancelTree, depth {depth:,}, {root} root")
          for depth in (1, 10, 100, 1_000) for root in ("background", "open", "closed")),
        Row("context_cancel_done", "ContextCancelDone, all cores"),
        *sized("deep_value/depth", "DeepValue, missing key compared by value, depth {}", DEPTHS),
        *sized("with_deep_value/depth", "WithValue, building and dropping a chain of {}", DEPTHS),
    ]),
]

# What the plot shows and the table does not.
PLOTTED = [
    *sized("cancel/children", "", DECADES),
    *sized("with_timeout/live", "", DECADES),
    *sized("cancel/chain", "", DECADES[:6]),
    *(Row(f"with_cancel/parent/threads={threads}", "") for threads in (4, 8)),
]

PANELS = [
    ("Canceling a parent of n children, per child", "live children",
     [(size, f"cancel/children={size}") for size in DECADES]),
    ("A timeout, created and canceled", "other live timers",
     [(size, f"with_timeout/live={size}") for size in DECADES]),
    ("Canceling a chain of n contexts, per level", "depth",
     [(size, f"cancel/chain={size}") for size in DECADES[:6]]),
    ("A child of a shared parent, created and canceled", "threads that share it",
     [(1, "with_cancel/parent"), *((n, f"with_cancel/parent/threads={n}") for n in (2, 4, 8))]),
]

TIMER_RUNS = {"spread": ["ctx", "Go"], "bare": ["Go"], "single": ["ctx", "Go"], "idle": ["ctx", "Go"], "busy": ["ctx", "Go"]}


def lines_of(command):
    """The lines that a program prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}{done.stdout}")
    return done.stdout


def cpp_cost(program, way, name, seconds):
    """One measurement of ctx or raw, None where there is no such operation."""
    pattern = f"^{way}:{name}(/(real_time|manual_time|threads:[0-9]+))*$"
    out = lines_of([program, f"--benchmark_filter={pattern}", f"--benchmark_min_time={seconds}",
                    "--benchmark_format=json"])
    run = next(iter(json.loads(out)["benchmarks"] if out.strip() else []), None)
    if run is None:
        return None
    return {
        "ns": run["real_time"] / run.get("count", 1),
        "allocations": run.get("allocations", 0),
        "bytes": run.get("bytes", 0),
    }


def go_cost(program, name, seconds):
    out = lines_of([program, "-run", f"^{name}$", "-time", f"{seconds}s"])
    return json.loads(out) if out.strip() else None


class Results:
    """What was measured: for each operation or run, and each of ctx, Go and raw, one dict a round."""

    def __init__(self):
        self.of = {}

    def add(self, name, way, measured):
        if measured is not None:
            self.of.setdefault((name, way), []).append(measured)

    def median(self, name, way, what="ns"):
        values = [each[what] for each in self.of.get((name, way), []) if what in each]
        return statistics.median(values) if values else None

    def ratio(self, name, other, way, what="ns"):
        a, b = self.median(name, way, what), self.median(other, way, what)
        return a / b if a is not None and b else None


def number(value):
    """With three digits that count: 0.61, 6.12, 61.2, 612, 6,120; whole numbers as such."""
    if value is None:
        return "–"
    if abs(value) >= 100 or abs(value - round(value)) < 0.01:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.2f}"


def say(progress):
    """Shows somebody who watches how far we are."""
    if sys.stderr.isatty():
        print(f"\r{progress:70}\r", end="", file=sys.stderr, flush=True)


def table(header, rows):
    out = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] + ["--:"] * (len(header) - 1)) + "|"]
    return "\n".join(out + ["| " + " | ".join(row) + " |" for row in rows])


def cost_table(results, sections):
    def pair(name, what):
        return " / ".join(number(results.median(name, way, what)) for way in ("ctx", "Go"))

    out = []
    for title, rows in sections:
        shown = []
        for row in rows:
            what = "bytes" if row.name.startswith("bytes/") else "ns"
            ours, theirs, raw = (results.median(row.name, way, what) for way in ("ctx", "Go", "raw"))
            ratio = theirs / ours if ours and theirs else None
            missed = ratio is not None and ratio < row.target
            target = f"{row.target:g}" if row.target else ""
            if row.of_raw:
                target += f", and {row.of_raw:g} × raw"
                missed = missed or (ours is not None and raw is not None and ours > row.of_raw * raw)
            per_operation = what == "ns" and "threads=" not in row.name
            shown.append([
                row.label, number(ours), number(theirs),
                f"**{ratio:.2f}**" if missed else "–" if ratio is None else f"{ratio:.2f}", target, number(raw),
                pair(row.name, "allocations") if per_operation or what == "bytes" else "",
                pair(row.name, "bytes") if per_operation else "",
            ])
        if any(row[1] != "–" or row[2] != "–" for row in shown):
            out += [[f"**{title}**"] + [""] * 7, *shown]
    return table(["operation", "ctx ns", "Go ns", "Go / ctx", "at least", "raw ns",
                  "allocations, ctx / Go", "bytes, ctx / Go"], out)


def timer_table(results):
    """The targets of the timer, beside Go and what has no contexts to serve."""
    cost = results.median

    def run(name, what, way="ctx"):
        return results.median(f"timer/{name}", way, what)

    def both(name, what):
        return run(name, what), run(name, what, "Go")

    rows = []

    def add(label, ours, theirs, target, met, unit="", bare=None, bare_name=""):
        if ours is None and theirs is None:
            return
        ours_text = number(ours) + unit if ours is not None else "–"
        if ours is not None and met is not None and not met:
            ours_text = f"**{ours_text}**"
        rows.append([label, ours_text, number(theirs) + unit if theirs is not None else "–",
                     f"{number(bare)}{unit} ({bare_name})" if bare is not None else "", target])

    for name, label, limit in (
        ("arm/live", "arm 1,000 with 1,000,000 live: times the cost with 1,000 live", 1.5),
        ("disarm/live", "disarm these in random order, likewise", 1.5),
        ("with_timeout/live", "arm and disarm one, likewise", 1.5),
        # What grows here is the distance to the memory, which the processor's caches no longer hold.
        ("arm/timers", "arm all of 1,000,000: times the cost of each of 1,000", None),
        ("disarm/timers", "disarm all of them in random order, likewise", None),
    ):
        ours, theirs = (results.ratio(f"{name}=1000000", f"{name}=1000", way) for way in ("ctx", "Go"))
        add(label, ours, theirs, f"at most {limit} ×" if limit else "",
            None if limit is None else ours is not None and ours <= limit, " ×")
    for name, label, factor in (
        ("with_timeout/root", "`with_timeout(1h)` created and canceled", 3),
        ("with_timeout/root/threads=2", "the same from two threads at once", 1.5),
    ):
        ours, theirs = cost(name, "ctx"), cost(name, "Go")
        add(label, ours, theirs, f"{factor:g} × faster than Go",
            None if ours is None or theirs is None else theirs / ours >= factor, " ns")
    for what, label, limit in (("p50", "100,000 deadlines over one second: lateness, p50", 40), ("p99", "… p99", 500)):
        ours, theirs = both("spread", what)
        add(label, ours, theirs, f"under {limit} µs", ours is not None and ours < limit, " µs",
            run("bare", what, "Go"), "`time.AfterFunc`")
    ours, theirs = both("spread", "early")
    add("… early", ours, theirs, "none", ours == 0)
    ours, theirs = both("spread", "cpu")
    least = run("bare", "cpu", "Go")
    add("… CPU time", ours, theirs, "at most that of `time.AfterFunc`",
        None if ours is None or least is None else ours <= least, " ms", least, "`time.AfterFunc`")
    ours, least = run("single", "p50"), run("single", "system_p50")
    add("one deadline of 10 ms, 200 times: lateness, p50, on the timer's thread", ours, None,
        "at most 1.2 × `clock_nanosleep` with 1 ns slack",
        None if ours is None or not least else ours <= 1.2 * least, " µs", least, "`clock_nanosleep`")
    ours, theirs = both("single", "wait_p50")
    add("… seen by a thread that waits for it", ours, theirs, "", None, " µs")
    ours = run("single", "slack")
    add("… slack of the timer's thread, asked on it", ours, None, "", None, " ns")
    ours, theirs = both("idle", "wake_ups")
    add("1,000 timers an hour away, 5 s of idling: wake-ups", ours, theirs, "none", ours == 0)
    ours, theirs = both("busy", "wake_ups")
    add("one timer a second among 1,000,000 others, one replaced every 4 µs: wake-ups a second", ours, theirs,
        "a few hundred at most", ours is not None and ours <= 300)
    return table(["timer", "ctx", "Go", "without contexts", "target"], rows) if rows else ""


def panels(results):
    made = []
    for title, x_label, names in PANELS:
        series = {}
        for way in ("ctx", "Go", "raw"):
            line = [(x, results.median(name, way)) for x, name in names]
            line = [(x, y) for x, y in line if y is not None]
            if len(line) > 1:
                series[way] = line
        if series:
            made.append(plot.Panel(title, x_label, series))
    return made


def description(programs, rounds):
    """What was measured, with what, on what."""
    parts = []
    if "cost" in programs:
        out = lines_of([programs["cost"], "--benchmark_filter=^ctx:done/live/real_time$",
                        "--benchmark_min_time=0.001", "--benchmark_format=json"])
        context = json.loads(out)["context"]
        parts.append(f"{context['compiler']}, {context['library']}")
        if context["optimised"] != "yes":
            parts.append("**not optimised: the times mean nothing**")
    if platform.libc_ver()[0]:
        parts.append(" ".join(platform.libc_ver()))
    if "go_cost" in programs:
        parts.append(lines_of([programs["go_cost"], "-version"]).strip())
    processor = platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            processor = re.search(r"model name\s*: (.*)", info.read())[1]
    except (OSError, TypeError):
        pass
    release = re.match(r"[\d.]*", platform.release())[0]
    parts.append(f"{os.cpu_count()} cores, {processor}, {platform.system()} {release}")
    parts.append(f"medians of {rounds} round{'s' if rounds > 1 else ''}")
    return "; ".join(parts)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("programs", metavar="PROGRAM", nargs="*", type=pathlib.Path)
    options.add_argument("--rounds", type=int, default=5, metavar="N")
    options.add_argument("--filter", default="", metavar="RE",
                         help="only the operations whose name this matches; the timer's are timer/" + ", timer/".join(TIMER_RUNS))
    options.add_argument("--svg", type=pathlib.Path, metavar="FILE", help="where to draw the plot")
    options.add_argument("--json", type=pathlib.Path, metavar="FILE", help="where to write every single measurement")
    options.add_argument("--quick", action="store_true", help="one short round of what is small, to see that it runs")
    given = options.parse_args()
    programs = {program.stem: program.resolve() for program in given.programs}
    if not programs:
        options.error("no programs to run")
    rounds, seconds, scale = (1, 0.005, 0.02) if given.quick else (given.rounds, 0.1, 1)

    wanted = {}
    for row in [row for _, rows in ROWS for row in rows] + (PLOTTED if given.svg else []):
        if re.search(given.filter, row.name) and not (given.quick and row.large):
            wanted.setdefault(row.name, row)
    timer_runs = [run for run in TIMER_RUNS if re.search(given.filter, f"timer/{run}")]
    has_raw = set()
    if "cost" in programs:
        listed = lines_of([programs["cost"], "--benchmark_list_tests"]).split()
        has_raw = {name[4:] for name in listed if name.startswith("raw:")}

    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    results = Results()
    for turn in range(1, rounds + 1):
        for name in wanted:
            say(f"round {turn} of {rounds}: {name}")
            if "cost" in programs:
                results.add(name, "ctx", cpp_cost(programs["cost"], "ctx", name, seconds))
            if "go_cost" in programs:
                results.add(name, "Go", go_cost(programs["go_cost"], name, seconds))
            if any(re.match(re.escape(name) + r"(/\w+_time|/threads:)", each) for each in has_raw):
                results.add(name, "raw", cpp_cost(programs["cost"], "raw", name, seconds))
        for run in timer_runs:
            say(f"round {turn} of {rounds}: timer/{run}")
            for program, way in (("timer", "ctx"), ("go_timer", "Go")):
                if program in programs and way in TIMER_RUNS[run]:
                    results.add(f"timer/{run}", way, json.loads(lines_of([programs[program], run, str(scale)])))
    say("")

    about = description(programs, rounds)
    shown = [(title, [row for row in rows if row.name in wanted]) for title, rows in ROWS]
    if "cost" in programs or "go_cost" in programs:
        print(cost_table(results, shown), end="\n\n")
    if timer := timer_table(results):
        print(timer, end="\n\n")
    print(f"Short of its target is what is **bold**. Measured with {about}.")
    if load_before > 0.7:
        print(f"The machine was busy with other things: load average {load_before:.1f} before the first round.")
    if given.svg and (drawn := panels(results)):
        given.svg.write_text(plot.draw(drawn, about), encoding="utf-8")
    if given.json:
        flat = [{"name": name, "way": way, "rounds": each} for (name, way), each in results.of.items()]
        given.json.write_text(json.dumps(flat, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
