#!/usr/bin/env python3
"""The strength of the suite: strength.py [--seed N] [--count N] [--only FILE]... [--replay ID]... [--list].

Makes small changes to ctx/, one at a time, in scratch copies of this tree: a comparison turned, a bound off
by one, a condition negated, a line dropped, a constant or an operator changed, a memory order weakened.
Each is built and shown to the tests, the most likely and quickest first; the first that fails, or takes ten
times its time, has noticed it. A change that does not compile, or compiles to the same code, counts for nothing.
What no test notices is listed; test/strength.md says why some can't be. Exits with 0 where at least 95 of 100 were
noticed and the rest are argued there.

Which changes are tried follows from the seed, which is printed. --only takes a path, or a part of one;
--replay an ID as printed, FILE:LINE:COLUMN:CHANGE.

What no test notices is then shown to tests built with AddressSanitizer. No x86 shows most memory orders that are
too weak, nor a missing lock that is seldom needed: for those, the tests of races are built with ThreadSanitizer.
"""

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import queue
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARGUED = ROOT / "test" / "strength.md"
WANTED = 95  # of a hundred are to be noticed

# Programs and what of them to run. What takes long comes in a step of its own.
STEPS = {
    "error": ("error_test", []),
    "value": ("value_test", []),
    "wheel": ("wheel_test", []),
    "after_func": ("after_func_test", []),
    "allocation": ("allocation_test", []),
    "deadline": ("deadline_test", []),
    "fault": ("fault_test", []),
    "tree": ("tree_test", ["-tce=*million*,random trees*"]),
    "saturate": ("saturate_test", []),
    "go_race": ("go_race_test", []),
    "group": ("group_test", []),
    "signal": ("signal_test", []),
    "model": ("model/model_test", []),
    "fork": ("process/fork_test", []),
    "process": ("process/process_test", ["-tce=*plugin*,*cop*of the library*"]),
    "random_tree": ("tree_test", ["-tc=random trees*"]),
    "signal_process": ("process/signal_process_test", []),
    "race": ("race_test", []),
    "million": ("tree_test", ["-tc=*million*"]),
    "plugin": ("process/process_test", ["-tc=*plugin*,*cop*of the library*"]),
}
NEEDS = {
    "process": ["test/process/process_" + name for name in ("exit", "idle", "start")],
    "plugin": ["test/process/process_" + name for name in ("host", "plugin.so")],
    "signal_process": ["test/process/process_signals"],
}
FIRST = {
    "after_func.cpp": ["after_func", "allocation", "race"],
    "clock.cpp": ["deadline"],
    "context.cpp": ["error", "deadline", "tree", "allocation"],
    "error.cpp": ["error"],
    "manual_clock.cpp": ["deadline"],
    "platform.cpp": ["process", "fork", "after_func"],
    "timer.cpp": ["deadline", "allocation", "process", "fork"],
    "timer.hpp": ["deadline", "process", "fork"],
    "tree.cpp": ["tree", "error", "allocation", "race", "random_tree"],
    "tree.hpp": ["tree", "error", "race"],
    "waiting.cpp": ["deadline", "fork", "race"],
    "wheel.cpp": ["wheel"],
    "wheel.hpp": ["wheel"],
    "saturate.hpp": ["saturate", "deadline"],
    "key.hpp": ["value", "error"],
    "value_node.hpp": ["value", "error"],
    "context.hpp": ["tree", "value", "error", "after_func", "allocation"],
    "context_impl.hpp": ["after_func", "deadline", "value", "allocation", "race"],
    "node.hpp": ["tree", "error", "allocation", "race"],
    "error.hpp": ["error"],
    "manual_clock.hpp": ["deadline"],
    "group.cpp": ["group"],
    "group.hpp": ["group"],
    "signal.cpp": ["signal", "signal_process"],
    "signal.hpp": ["signal"],
    "signal_handler.cpp": ["signal", "signal_process"],
}
PLAIN, ADDRESS, THREAD = "plain", "address", "thread"
OPTIONS = {PLAIN: [], ADDRESS: ["-Db_sanitize=address,undefined"], THREAD: ["-Db_sanitize=thread"]}
TABLES = {
    PLAIN: STEPS,
    ADDRESS: {step: STEPS[step] for step in ("tree", "after_func", "value", "group", "signal", "fork", "race")},
    THREAD: {step: STEPS[step] for step in ("after_func", "deadline", "go_race", "group", "process", "race")},
}


# Changes


@dataclass(frozen=True)
class Mutant:
    path: str
    line: int  # from 1
    column: int  # from 0
    name: str  # of the change
    end: int
    text: str  # instead of columns `column` to `end`
    before: str  # the line

    @property
    def id(self):
        return f"{self.path}:{self.line}:{self.column}:{self.name}"

    @property
    def after(self):
        return (self.before[: self.column] + self.text + self.before[self.end :]).strip()

    @property
    def change(self):
        return f"`{self.before.strip()}` -> `{self.after}`"

    @property
    def builds(self):
        """In which builds it may show."""
        if "relaxed" in self.name or self.name.startswith("acq_rel"):
            return [THREAD]
        return [PLAIN, THREAD] if self.name == "drop-lock" or "unordered" in self.name else [PLAIN, ADDRESS]


SWAPS = {
    " == ": [" != "],
    " != ": [" == "],
    " < ": [" <= ", " > "],
    " > ": [" >= ", " < "],
    " <= ": [" < ", " >= "],
    " >= ": [" > ", " <= "],
    " && ": [" || "],
    " || ": [" && "],
    " + ": [" - "],
    " - ": [" + "],
    " * ": [" / "],
    " / ": [" * "],
    " % ": [" / "],
    " += ": [" -= "],
    " -= ": [" += "],
    " *= ": [" /= "],
    " /= ": [" *= "],
    " | ": [" & "],
    " & ": [" | "],
    " ^ ": [" | "],
    " |= ": [" &= "],
    " &= ": [" |= "],
    " << ": [" >> "],
    " >> ": [" << "],
    "++": ["--"],
    "true": ["false"],
    "false": ["true"],
    "std::min": ["std::max"],
    "std::max": ["std::min"],
    "std::memory_order_acquire": ["std::memory_order_relaxed"],
    "std::memory_order_release": ["std::memory_order_relaxed"],
    "std::memory_order_acq_rel": ["std::memory_order_acquire", "std::memory_order_release"],
}
ORDER = "std::memory_order_"
TOKEN = re.compile(
    "|".join(re.escape(each) if each[0] == " " or each == "++" else rf"\b{each}\b(?!_element)" for each in sorted(SWAPS, key=len, reverse=True))
)
NUMBER = re.compile(r"(?<![\w.'])(\d[\d']*)(?=(?:U|L|UL|ULL|LL)?\b(?![.\w']))")
CONDITION = re.compile(r"\b(if|while)( constexpr)? \(")
STATEMENT = re.compile(r"^(?!return\b|using\b|friend\b|~|virtual\b|explicit\b)[\w:*(+-].*;$")
DECLARATION = re.compile(r"^(?!delete |throw |case |if |for |while |else )(\w|::)+(<.*>)?(\s*[*&]+\s*|\s+)(\w|::|<|>)+|= (delete|default);$|^\w+\(.*\) noexcept|\) : ")
LOCK = re.compile(r"^const std::lock_guard \w+\{.*\};$")
# What says no order is sequentially consistent.
STORE = re.compile(r"((?:\w+(?:\.|->))?\b(?:asleep_until_|registration_|next|state_|started_)) = ([^=;]+);$")
EXCHANGE = re.compile(r"\.(exchange|compare_exchange_strong|compare_exchange_weak)\((?!.*memory_order)")
EARLY_RETURN = re.compile(r"^if .*;$")
IF_WINDOWS = re.compile(r"#if (!?)defined\(_WIN32\)$")
TOO_DULL = re.compile(r"\bstatic_assert\b|\bassert\(|^\s*#|^\s*template\b|\brequires\b|^\s*concept\b|\[\[nodiscard|operator==")


def blank_comments_and_texts(source):
    """The same text, with spaces for what is no code, so that positions stay."""
    pattern = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", re.S)
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), source)


def closing(code, at):
    """Where the parenthesis that opens at `at` closes on the same line, or -1."""
    depth = 0
    for i in range(at, len(code)):
        depth += {"(": 1, ")": -1}.get(code[i], 0)
        if depth == 0:
            return i
    return -1


def mutants_of(path):
    source = (ROOT / path).read_text()
    raw = source.split("\n")
    code = blank_comments_and_texts(source).split("\n")
    starts_here = True  # whether a statement does
    compiled = []  # for each #if around: whether this part of it is, as this runs on no Windows
    for number, (line, text) in enumerate(zip(raw, code), 1):

        def mutant(name, start, end, new):
            return Mutant(path, number, start, name, end, new, line)

        stripped = text.strip()
        fresh, starts_here = starts_here, (not stripped or stripped[-1] in ";{}:" or stripped.startswith("#"))
        if stripped.startswith("#if"):
            windows = IF_WINDOWS.match(stripped)
            compiled.append(windows is None or windows[1] == "!")
        elif stripped == "#else":
            compiled[-1] = not compiled[-1]
        elif stripped == "#endif":
            compiled.pop()
        if not stripped or not all(compiled) or TOO_DULL.search(text):
            continue
        for match in TOKEN.finditer(text):
            if match.group() == " * " and re.search(r"[\w>] \* \w+ = ", text):
                continue
            for new in SWAPS[match.group()]:
                yield mutant(f"{match.group().strip()}>{new.strip()}".replace(ORDER, ""), *match.span(), new)
        for match in NUMBER.finditer(text):
            value = int(match.group(1).replace("'", ""))
            for new in {value + 1, max(value - 1, 0)} - {value}:
                yield mutant(f"{value}>{new}", *match.span(1), str(new))
        for match in CONDITION.finditer(text):
            end = closing(text, match.end() - 1)
            if end > 0 and ";" not in text[match.end() : end] and not re.search(r"\w [*&]*\w+ = |\* const ", text[match.end() : end]):
                yield mutant(f"negate-{match.group(1)}", match.end() - 1, end + 1, f"(!({line[match.end():end]}))")
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        whole = stripped.count("(") == stripped.count(")") and stripped.count("{") == stripped.count("}")
        if fresh and LOCK.match(stripped):
            yield mutant("drop-lock", start, end, "")
        elif fresh and whole and (EARLY_RETURN.match(stripped) or STATEMENT.match(stripped) and not DECLARATION.search(stripped)):
            yield mutant("drop", start, end, "")
        if store := STORE.search(text):
            yield mutant("unordered-store", *store.span(), f"{store[1]}.store({store[2]}, {ORDER}relaxed);")
        if exchange := EXCHANGE.search(text):
            close = closing(text, exchange.end() - 1)
            yield mutant("seq_cst>relaxed", close, close, f", {ORDER}relaxed")


def all_mutants(only):
    paths = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "ctx").rglob("*.?pp"))
    for path in paths:
        if not only or any(part in path for part in only):
            yield from mutants_of(path)


# Building and running


class Lane:
    """A copy of the tree with its builds, in which one change at a time is tried."""

    def __init__(self, work):
        self.source = work / "tree"
        self.builds = {}
        self.unchanged = {}  # by build: its library, where nothing was changed
        self.source.mkdir(parents=True)
        files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                               cwd=ROOT, check=True, capture_output=True).stdout
        for name in files.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (self.source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.source / name)

    def build(self, kind):
        if kind not in self.builds:
            build = self.builds[kind] = self.source.parent / kind
            # Without debugging information and much optimization, as most of the time goes to compiling; with
            # assertions.
            subprocess.run(["meson", "setup", str(build), str(self.source), "-Dauto_features=enabled", "-Ddebug=false",
                            "-Doptimization=1", "-Dwarning_level=0", "-Db_lundef=false", *OPTIONS[kind]],
                           check=True, stdout=subprocess.DEVNULL)
            built, log = ninja(build, ["test/error_test"])
            if not built:
                sys.exit(log)
            self.unchanged[build] = library_of(build)
        return self.builds[kind]


def ninja(build, targets):
    done = subprocess.run(["ninja", "-C", str(build), "-j1", *targets], capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


def library_of(build):
    """A digest of the code that the tests are linked to."""
    (library,) = (each for each in build.glob("ctx/libctx.so.*") if each.is_file() and not each.is_symlink())
    return hashlib.sha256(library.read_bytes()).digest()


def run(build, program, arguments, limit):
    """Whether the tests pass; None where they hang."""
    env = dict(os.environ, CTX_TEST_SEED="1", UBSAN_OPTIONS="halt_on_error=1",
               TSAN_OPTIONS="halt_on_error=1:exitcode=66:die_after_fork=0")

    def prepare():
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if build.name == PLAIN:
            resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))

    process = subprocess.Popen([str(build / "test" / program), "-aa=1", *arguments], cwd=build / "test", env=env,
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               preexec_fn=prepare)
    try:
        passed = process.wait(limit) == 0
    except subprocess.TimeoutExpired:
        passed = None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    return passed


@dataclass
class Verdict:
    counts: bool  # it compiles
    noticed: str  # by what, and how
    took: float


def steps_for(mutant, build):
    likely = FIRST.get(pathlib.Path(mutant.path).name, [])
    first = [each for each in likely if each in TABLES[build]]
    if likely and "/src/" not in mutant.path:
        return first  # each program would have to be compiled anew, and sees no more of a public header than these
    return first + [each for each in TABLES[build] if each not in first]


def programs_of(step, build):
    return ["test/" + TABLES[build][step][0]] + NEEDS.get(step, [])


def try_out(lane, mutant, times):
    start = time.monotonic()
    differs = "/src/" not in mutant.path  # what is in a header is in the tests, too
    for build in mutant.builds:
        directory = lane.build(build)
        for step in steps_for(mutant, build):
            built, log = ninja(directory, programs_of(step, build))
            if not built:
                # A static_assert of a test is a test.
                asserted = re.search(r"/test/\w+\.cpp.*(static assertion failed|non-constant condition)", log)
                return Verdict(bool(asserted), f"{step} does not compile", time.monotonic() - start)
            if not differs and library_of(directory) == lane.unchanged[directory]:
                break
            differs = True
            passed = run(directory, *TABLES[build][step], limit=20 + 10 * times[build][step])
            if not passed:
                how = "hangs" if passed is None else "fails"
                where = "" if build is PLAIN else " with " + build
                return Verdict(True, f"{step} {how}{where}", time.monotonic() - start)
    return Verdict(differs, "", time.monotonic() - start)


def judge(lane, mutant, times):
    target = lane.source / mutant.path
    original = target.read_text()
    lines = original.split("\n")
    assert lines[mutant.line - 1] == mutant.before
    lines[mutant.line - 1] = mutant.before[: mutant.column] + mutant.text + mutant.before[mutant.end :]
    try:
        target.write_text("\n".join(lines))
        return try_out(lane, mutant, times)
    finally:
        target.write_text(original)


def baseline(lane, build):
    """How long each step takes where nothing was changed; all have to pass."""
    directory = lane.build(build)
    times = {}
    for step, (program, arguments) in TABLES[build].items():
        built, log = ninja(directory, programs_of(step, build))
        if not built:
            sys.exit(log)
        start = time.monotonic()
        if not run(directory, program, arguments, 600):
            sys.exit(f"{step}: the tests fail, though nothing was changed")
        times[step] = time.monotonic() - start
    return times


# Arguments


def argued():
    """What strength.md argues: lines of the form `- FILE: CHANGE: why`."""
    entries = {}
    for line in ARGUED.read_text().splitlines() if ARGUED.exists() else []:
        match = re.match(r"- (\S+): (`.*?` -> `.*?`): (.+)", line)
        if match:
            entries[match.group(1), match.group(2)] = match.group(3)
    return entries


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--count", type=int, default=100, metavar="N", help="so many that compile (default: 100)")
    parser.add_argument("--only", action="append", default=[], metavar="FILE")
    parser.add_argument("--replay", action="append", default=[], metavar="ID")
    parser.add_argument("--list", action="store_true", help="print all changes there are, and try none")
    parser.add_argument("--orders", action="store_true", help="memory orders and locks only, all of them")
    parser.add_argument("--lanes", type=int, default=os.cpu_count(), metavar="N", help="so many at a time")
    parser.add_argument("--work", type=pathlib.Path, help="where to build (default: a temporary directory)")
    options = parser.parse_args()

    candidates = list(all_mutants(options.only))
    known = argued()
    for entry in set(known) - {(each.path, each.change) for each in all_mutants([])}:
        print(f"strength.md argues what is not there: {entry[0]}: {entry[1]}")
    if options.list:
        for each in candidates:
            print(each.id, each.change, sep="\t")
        return 0
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    if options.replay:
        by_id = {each.id: each for each in all_mutants([])}
        candidates = [by_id[each] for each in options.replay]
        options.count = len(candidates)
    elif options.orders:
        candidates = [each for each in candidates if THREAD in each.builds]
        options.count = len(candidates)
    else:
        print(f"--seed {seed}: {options.count} of {len(candidates)} changes", flush=True)
        random.Random(seed).shuffle(candidates)

    with working_directory(options.work) as work:
        lanes = queue.SimpleQueue()
        made = [Lane(work / f"lane{i}") for i in range(max(1, options.lanes))]
        for lane in made:
            lanes.put(lane)

        def with_a_lane(function, *arguments):
            lane = lanes.get()
            try:
                return function(lane, *arguments)
            finally:
                lanes.put(lane)

        def attempt(mutant):
            return mutant, with_a_lane(judge, mutant, times)

        counted, position = [], 0
        with concurrent.futures.ThreadPoolExecutor(len(made)) as pool:
            kinds = sorted({build for each in candidates for build in each.builds})
            times = dict(zip(kinds, pool.map(lambda kind: with_a_lane(baseline, kind), kinds)))
            while len(counted) < options.count and position < len(candidates):
                batch = candidates[position : position + options.count - len(counted)]
                position += len(batch)
                for mutant, verdict in pool.map(attempt, batch):
                    if not verdict.counts:
                        continue
                    counted.append((mutant, verdict))
                    print(f"{len(counted):4} {verdict.took:5.0f}s  {verdict.noticed or 'NOT NOTICED':24} {mutant.id}",
                          flush=True)

    unnoticed = [mutant for mutant, verdict in counted if not verdict.noticed]
    noticed = len(counted) - len(unnoticed)
    print(f"\nnoticed {noticed} of {len(counted)}")
    open_ones = 0
    for mutant in unnoticed:
        why = known.get((mutant.path, mutant.change))
        open_ones += why is None
        print(f"{mutant.path}:{mutant.line}: {mutant.change}\n    {why or 'not argued'}\n    --replay '{mutant.id}'")
    return 0 if open_ones == 0 and noticed * 100 >= WANTED * len(counted) else 1


class working_directory:
    """The directory to work in: the given one, emptied before, or one that goes in the end."""

    def __init__(self, given):
        self.given = given

    def __enter__(self):
        if self.given is None:
            self.temporary = tempfile.TemporaryDirectory(prefix="strength-")
            return pathlib.Path(self.temporary.name)
        for each in self.given.glob("lane*"):
            shutil.rmtree(each)
        self.given.mkdir(parents=True, exist_ok=True)
        return self.given.resolve()

    def __exit__(self, *_):
        if self.given is None:
            self.temporary.cleanup()


if __name__ == "__main__":
    sys.exit(main())
