"""The main job, tried as a user would: search_test.py PROGRAM.

Exists for what only a whole process shows: exit statuses, messages, signals, terminals, closed
pipes, and that a search ends whatever it is just doing. Nothing here depends on how fast the
machine is. A search that must still run when it is interrupted writes to a pipe that nobody reads,
or reads a file of 256 GiB that is one hole: what ends it is then known. Real time is asserted from
below only, but for the guard against a hang.
"""

import contextlib
import fcntl
import os
import pathlib
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import traceback

PROGRAM = os.path.abspath(sys.argv[1])
GUARD = 60  # seconds; nothing takes as long unless it hangs
NOBODY = 65534

SCORE = r"files searched: (\d+), matches: (\d+), elapsed: (\d+\.\d{3})s"
SUMMARY = re.compile(rf"search: {SCORE}(?:; cut short: (.+))?\n")
ERASE = "\r\x1b[K"

checks = []


def check(sentence):
    def enlist(function):
        checks.append((sentence, function))
        return function

    return enlist


class Skip(Exception):
    pass


def equal(got, wanted, what="got"):
    assert got == wanted, f"{what} {got!r}, wanted {wanted!r}"


def contains(text, part):
    assert part in text, f"{part!r} is not in {text!r}"


class Result:
    """How a search went: its summary is the last line on stderr, its complaints are the others."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err
        self.lines = sorted(out.splitlines())
        *self.complaints, last = err.splitlines(keepends=True) or [""]
        self.summary = SUMMARY.fullmatch(last)
        if self.summary:
            self.files, self.matches = int(self.summary[1]), int(self.summary[2])
            self.elapsed, self.why = float(self.summary[3]), self.summary[4]

    def ended(self, status, why=None):
        """Asserts the status, and that there is a summary that gives this reason."""
        assert self.summary, f"no summary at the end of {self.err!r}"
        equal((self.status, self.why), (status, why), "status and reason")
        return self


def search(*words, **options):
    done = subprocess.run([PROGRAM, *map(str, words)], stdin=subprocess.DEVNULL, timeout=GUARD,
                          **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})
    return Result(done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode())


@contextlib.contextmanager
def started(*words, **options):
    """A search that runs while the caller looks at it, and not longer."""
    process = subprocess.Popen([PROGRAM, *map(str, words)], stdin=subprocess.DEVNULL,
                               **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})
    guard = threading.Timer(GUARD, process.kill)  # ends what the caller reads from it
    guard.start()
    try:
        yield process
    finally:
        guard.cancel()
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def finish(process):
    """What is left to read of it, once it has ended."""
    out, err = process.communicate(timeout=GUARD)
    return Result(process.returncode, (out or b"").decode(), (err or b"").decode())


def fill(directory, files):
    """Writes {relative path: content} below a directory, and returns it."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    directory.mkdir(exist_ok=True)
    return directory


def endless(path):
    """A file that takes minutes to read and no room: text, then a hole."""
    with open(path, "wb") as file:
        file.write(b"some text\n" * 20_000)
        try:
            file.truncate(256 << 30)
        except OSError as why:
            raise Skip(f"no room for a hole here: {why}")


def torrent(directory):
    """More matches for `needle` than any pipe holds."""
    return fill(directory, {f"{i}.txt": f"a needle in {i}\n" * 20_000 for i in range(20)})


def many(directory):
    """1,000 files in 40 directories, each of them with three matches; and the lines they give."""
    files = {f"{d}/{d % 7}/{f}.txt": f"hay\nneedle {d} {f}\nneedles\nhay\nmore hay and a needle\n"
             for d in range(40) for f in range(25)}
    fill(directory, files)
    return sorted(f"{directory}/{name}:{number}: {line}" for name, content in files.items()
                  for number, line in enumerate(content.splitlines(), 1) if "needle" in line)


# Searching


@check("every matching line is printed once, with its path and number, and the status is 0")
def _(tmp):
    expected = many(tmp / "tree")
    for workers in (1, 2, 8, 64):
        result = search("--workers", workers, "needle", tmp / "tree").ended(0)
        equal(result.lines, expected)
        equal((result.files, result.matches, result.complaints), (1000, 3000, []))


@check("without a match nothing is printed and the status is 1")
def _(tmp):
    many(tmp / "tree")
    result = search("Needle", tmp / "tree").ended(1)
    equal((result.out, result.files, result.matches), ("", 1000, 0))


@check("an empty directory is searched like any other")
def _(tmp):
    equal(search("needle", tmp).ended(1).files, 0)


@check("lines stay whole and in order, however many workers print long ones at once")
def _(tmp):
    files = {f"{letter}.txt": "".join(f"{n} {letter * 3000}\n" for n in range(300))
             for letter in "abcdefgh"}
    fill(tmp, files)
    result = search("--workers", 8, "", tmp).ended(0)
    for name, content in files.items():
        equal([line for line in result.out.splitlines() if line.startswith(f"{tmp}/{name}:")],
              [f"{tmp}/{name}:{n}: {line}" for n, line in enumerate(content.splitlines(), 1)])
    equal(len(result.out.splitlines()), 2400)


@check("the last line needs no newline, and an empty TEXT matches every line")
def _(tmp):
    fill(tmp, {"a": "one\ntwo\n\nneedle", "empty": ""})
    equal(search("needle", tmp).ended(0).out, f"{tmp}/a:4: needle\n")
    result = search("", tmp).ended(0)
    equal(result.out, f"{tmp}/a:1: one\n{tmp}/a:2: two\n{tmp}/a:3: \n{tmp}/a:4: needle\n")
    equal(result.files, 2)


@check("a match is found wherever it lies in a line longer than any buffer, and counted once")
def _(tmp):
    for position in (0, 65_530, 65_536, 65_539, 131_072, 199_994):
        line = bytearray(b"-" * 200_000)
        line[position:position + 6] = b"needle"
        fill(tmp, {"a": b"first\n" + bytes(line) + b"\nneedle\n"})
        first, second = search("needle", tmp).ended(0).out.splitlines()
        assert first.startswith(f"{tmp}/a:2: ") and "needle" in first, f"position {position}"
        assert len(first) < 70_000, f"{len(first)} characters of a line printed"
        equal(second, f"{tmp}/a:3: needle")
    fill(tmp, {"a": "needle" * 100_000 + "\n"})
    equal(search("needle", tmp).ended(0).matches, 1)


@check("a TEXT longer than any buffer is found")
def _(tmp):
    text = "0123456789" * 10_000
    fill(tmp, {"a": f"short\nx{text}y\n"})
    equal(search(text, tmp).ended(0).out, f"{tmp}/a:2: x{text}y\n")


@check("binary files are skipped")
def _(tmp):
    fill(tmp, {"a": "needle\n", "b": b"needle\n\0needle\n", "c": b"\0"})
    result = search("needle", tmp).ended(0)
    equal((result.out, result.files), (f"{tmp}/a:1: needle\n", 1))


@check("symbolic links in the tree are not followed, so a loop ends; DIR itself may be one")
def _(tmp):
    fill(tmp / "tree", {"sub/a": "needle\n"})
    (tmp / "tree/sub/loop").symlink_to(tmp / "tree")
    (tmp / "tree/self").symlink_to("self")
    (tmp / "tree/gone").symlink_to("nowhere")
    (tmp / "tree/again").symlink_to("sub/a")
    (tmp / "link").symlink_to("tree")
    result = search("needle", tmp / "link").ended(0)
    equal((result.out, result.complaints), (f"{tmp}/link/sub/a:1: needle\n", []))


@check("fifos and sockets are not opened")
def _(tmp):
    fill(tmp, {"a": "needle\n"})
    os.mkfifo(tmp / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        with contextlib.suppress(OSError):  # where the path is too long for a socket
            listener.bind(str(tmp / "socket"))
        result = search("needle", tmp).ended(0)
    equal((result.files, result.matches, result.complaints), (1, 1, []))


@check("unreadable files and directories are reported and skipped, and the status is 2, as grep's")
def _(tmp):
    who = {}
    if os.geteuid() == 0:
        who = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        os.chmod(tmp, 0o755)
        try:
            usable = search("--help", **who).status == 0
        except OSError:
            usable = False
        if not usable:
            raise Skip("root reads everything, and others can't run the program")
    fill(tmp, {"a": "needle\n", "file": "needle\n", "directory/b": "needle\n"})
    os.chmod(tmp / "file", 0)
    os.chmod(tmp / "directory", 0)
    try:
        result = search("needle", tmp, **who)
    finally:
        os.chmod(tmp / "directory", 0o700)
    result.ended(2)
    equal(result.out, f"{tmp}/a:1: needle\n")
    equal(sorted(result.complaints), [f"search: {tmp}/directory: Permission denied\n",
                                      f"search: {tmp}/file: Permission denied\n"])


# --first


@check("--first N prints exactly min(N, all) lines, and says so where it cut the search short")
def _(tmp):
    expected = set(many(tmp / "tree"))
    for workers in (1, 8):
        for first in (1, 2, 7, 1000, 2999, 3000):
            result = search("--workers", workers, "--first", first, "needle", tmp / "tree")
            result.ended(0, f"context canceled (--first {first} reached)")
            equal((len(result.lines), result.matches), (first, first))
            assert len(set(result.lines)) == first and set(result.lines) <= expected
        equal(len(search("--first", 3001, "needle", tmp / "tree").ended(0).lines), 3000)


@check("--first N also counts right within one block of one file, and where all threads race to it")
def _(tmp):
    fill(tmp, {str(n): "needle\n" * 50 for n in range(64)})
    for n in range(30):
        equal(len(search("--workers", 16, "--first", 75 + n, "needle", tmp).lines), 75 + n)


@check("--first 1 does not read the rest of the tree")
def _(tmp):
    many(tmp / "tree")
    result = search("--workers", 1, "--first", 1, "needle", tmp / "tree")
    equal(result.ended(0, "context canceled (--first 1 reached)").files, 1)
    endless(tmp / "tree/endless")
    result = search("--workers", 2, "--first", 1, "needle", tmp / "tree")
    result.ended(0, "context canceled (--first 1 reached)")


# --timeout


@check("--timeout ends the reading of a file, with status 124, and not early")
def _(tmp):
    endless(tmp / "endless")
    result = search("--timeout", "50ms", "needle", tmp)
    result.ended(124, "context deadline exceeded (--timeout 50ms)")
    assert result.elapsed >= 0.050, result.elapsed


@check("--timeout ends workers that wait for the walk, and a walk that waits for workers")
def _(tmp):
    endless(tmp / "endless")
    search("--workers", 64, "--timeout", "50ms", "needle", tmp).ended(
        124, "context deadline exceeded (--timeout 50ms)")
    for name in range(2000):
        os.link(tmp / "endless", tmp / str(name))
    result = search("--workers", 1, "--timeout", "50ms", "needle", tmp)
    result.ended(124, "context deadline exceeded (--timeout 50ms)")
    equal(result.files, 1)


@check("--timeout ends a search whose output nobody reads")
def _(tmp):
    with started("--timeout", "1.5s", "needle", torrent(tmp)) as process:
        equal(process.wait(timeout=GUARD), 124)
        result = finish(process).ended(124, "context deadline exceeded (--timeout 1.5s)")
        assert result.elapsed >= 1.5, result.elapsed


@check("--timeout 0s and 1ns are over before they begin; a long one changes nothing")
def _(tmp):
    many(tmp / "tree")
    for time in ("0s", "1ns", "0.5us"):
        search("--timeout", time, "needle", tmp / "tree").ended(
            124, f"context deadline exceeded (--timeout {time})")
    for time in ("1h", "2m", "1h30m", "90.5s", "99999999999999h", "1" + "0" * 400 + "h"):
        equal(search("--timeout", time, "needle", tmp / "tree").ended(0).matches, 3000)


# Signals


@check("SIGINT ends a search with status 130, SIGTERM with 143, and the summary names the signal")
def _(tmp):
    torrent(tmp)
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with started("needle", tmp) as process:
            process.stdout.read(1)  # it runs
            process.send_signal(number)
            equal(process.wait(timeout=GUARD), status)
            finish(process).ended(status, f"context canceled (received {number.name}: context canceled)")


@check("SIGINT ends the reading of a file")
def _(tmp):
    fill(tmp, {"a": "needle\n"})
    endless(tmp / "endless")
    with started("needle", tmp) as process:
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        finish(process).ended(130, "context canceled (received SIGINT: context canceled)")


@check("a second SIGINT kills a search that hangs while it ends")
def _(tmp):
    reader, writer = os.pipe()  # its stderr, full: the summary cannot be written
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, b"." * 4096):
            pass
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, b"."):
            pass
    os.set_blocking(writer, True)
    with started("needle", torrent(tmp), stderr=writer) as process:
        process.stdout.read(1)
        sent = 0
        while process.poll() is None and sent < GUARD * 10:
            process.send_signal(signal.SIGINT)
            sent += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.1)
        equal(process.returncode, -signal.SIGINT, "status")
        assert sent >= 2, "the first one did"
    os.close(reader)
    os.close(writer)


# Terminals


@contextlib.contextmanager
def terminal():
    """A pair of descriptors: where a person would sit, and where the program writes."""
    try:
        master, slave = pty.openpty()
    except OSError as why:
        raise Skip(f"no terminals here: {why}") from why
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST  # newlines as they are
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    try:
        yield master, slave
    finally:
        os.close(master)
        os.close(slave)


def read_until(master, end):
    """What the terminal shows up to this end."""
    shown = bytearray()
    while end.encode() not in shown[-5000:]:
        ready, _, _ = select.select([master], [], [], GUARD)
        assert ready, f"nothing more after {bytes(shown[-300:])!r}"
        shown += os.read(master, 4096)
    return shown.decode()


@check("on a terminal stderr shows progress while the search runs, and clears it")
def _(tmp):
    endless(tmp / "endless")
    with terminal() as (master, slave), started(
            "needle", tmp, stdout=subprocess.DEVNULL, stderr=slave) as process:
        shown = "".join(read_until(master, ERASE + "files searched: 1") for _ in range(3))
        process.send_signal(signal.SIGINT)
        shown += read_until(master, "\n")
        equal(process.wait(timeout=GUARD), 130)
    before, *progress, last = shown.split(ERASE)
    equal(before, "")
    for line in progress:
        assert line == "" or re.fullmatch(SCORE, line), f"{line!r} shown"
    assert SUMMARY.fullmatch(last), f"{last!r} is left"


@check("progress makes way for the matches on the same terminal")
def _(tmp):
    fill(tmp, {f"{i}.txt": f"a needle in {i}\n" * 500 for i in range(20)})
    with terminal() as (master, slave), started(
            "needle", tmp, stdout=slave, stderr=slave) as process:
        shown = ""
        for _ in range(20):  # slowly, to see some progress: whether or not, lines are whole
            select.select([], [], [], 0.02)
            shown += os.read(master, 2048).decode()
        shown += read_until(master, "search: files")
        equal(process.wait(timeout=GUARD), 0)
        if not shown.endswith("\n"):
            shown += read_until(master, "\n")
    *matches, last, _ = [line.split(ERASE)[-1] + "\n" for line in shown.split("\n")]
    equal(len(matches), 10_000)
    for line in matches:
        assert re.fullmatch(r"/.*/\d+\.txt:\d+: a needle in \d+\n", line), f"{line!r} shown"
    assert SUMMARY.fullmatch(last), f"{last!r} is left"


@check("Ctrl-C typed at the terminal ends a search, and clears the progress")
def _(tmp):
    endless(tmp / "endless")
    with terminal() as (master, slave):
        def take_terminal():
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        with started("needle", tmp, stdout=subprocess.DEVNULL, stderr=slave,
                     start_new_session=True, preexec_fn=take_terminal) as process:
            shown = read_until(master, ERASE + "files searched: 1")
            os.write(master, b"\x03")
            shown += read_until(master, "canceled)\n")
            equal(process.wait(timeout=GUARD), 130)
        last = shown.split(ERASE)[-1]
        assert SUMMARY.fullmatch(last), f"{last!r} is left"


# Output


@check("elsewhere stderr shows no progress")
def _(tmp):
    with started("needle", torrent(tmp)) as process:
        result = finish(process).ended(0)
    equal((result.complaints, "\r" in result.err, "\x1b" in result.err), ([], False, False))


@check("a reader that closes the output ends the search, quietly")
def _(tmp):
    torrent(tmp)
    endless(tmp / "endless")
    with started("needle", tmp) as process:
        process.stdout.readline()
        process.stdout.close()
        equal(process.wait(timeout=GUARD), 0)
        err = process.stderr.read().decode()
    Result(0, "", err).ended(0, "context canceled (stdout: Broken pipe)")


@check("an output that cannot be written is an error, with status 2")
def _(tmp):
    torrent(tmp)
    endless(tmp / "endless")
    if not os.path.exists("/dev/full"):
        raise Skip("no /dev/full here")
    with open("/dev/full", "wb") as full:
        result = search("needle", tmp, stdout=full)
        result.ended(2, "context canceled (stdout: No space left on device)")
        equal((result.matches, search("--help", stdout=full).status), (0, 2))


# The command line


@check("--help prints the help to stdout, with status 0")
def _(tmp):
    for words in (["--help"], ["--first", "3", "--help"], ["needle", "--help"]):
        result = search(*words)
        equal((result.status, result.err), (0, ""))
        for part in ("--first N", "--timeout D", "--workers N", "TEXT DIR", "Exit status"):
            contains(result.out, part)


@check("what is wrong on the command line is named, with status 2")
def _(tmp):
    fill(tmp, {"file": ""})
    wrong = {
        "bad duration '5x'": ["--timeout", "5x", "a", tmp],
        "bad duration '-1s'": ["--timeout", "-1s", "a", tmp],
        "bad duration 'nan'": ["--timeout", "nan", "a", tmp],
        "bad duration 'nans'": ["--timeout", "nans", "a", tmp],
        "bad duration 'infs'": ["--timeout", "infs", "a", tmp],
        "bad duration ''": ["--timeout", "", "a", tmp],
        "bad duration '1e400s'": ["--timeout", "1e400s", "a", tmp],
        "bad duration '0x1p3s'": ["--timeout", "0x1p3s", "a", tmp],
        "bad duration '1.2.3s'": ["--timeout", "1.2.3s", "a", tmp],
        "bad duration '.s'": ["--timeout", ".s", "a", tmp],
        "bad duration '5'": ["--timeout", "5", "a", tmp],
        "bad duration ' 5s'": ["--timeout", " 5s", "a", tmp],
        "bad duration '5s '": ["--timeout", "5s ", "a", tmp],
        "bad duration 's'": ["--timeout", "s", "a", tmp],
        "bad number '0' for --first": ["--first", "0", "a", tmp],
        "bad number '-1' for --first": ["--first", "-1", "a", tmp],
        "bad number 'x' for --first": ["--first", "x", "a", tmp],
        "bad number '1x' for --first": ["--first", "1x", "a", tmp],
        "bad number '' for --first": ["--first", "", "a", tmp],
        "bad number '99999999999999999999' for --first": ["--first", "9" * 20, "a", tmp],
        "bad number '0' for --workers": ["--workers", "0", "a", tmp],
        "bad number '1000000' for --workers": ["--workers", "1000000", "a", tmp],
        "unknown option '--frist'": ["--frist", "3", "a", tmp],
        "unknown option '-n'": ["-n", "a", tmp],
        "unknown option '--first=3'": ["--first=3", "a", tmp],
        "missing value for --first": ["a", tmp, "--first"],
        "missing value for --timeout": ["a", tmp, "--timeout"],
        "missing TEXT and DIR": [],
        "missing DIR": ["a"],
        "unexpected argument 'c'": ["a", "b", "c"],
        f"{tmp}/none: No such file or directory": ["a", tmp / "none"],
        f"{tmp}/file: Not a directory": ["a", tmp / "file"],
        ": No such file or directory": ["a", ""],
    }
    for message, words in wrong.items():
        result = search(*words)
        equal((result.status, result.out), (2, ""), f"{words}: status and output")
        equal(result.err.count("\n"), 1, f"{words}: lines")
        assert result.err.startswith("search: " + message), f"{words}: {result.err!r}"


@check("options stand anywhere, and -- ends them")
def _(tmp):
    fill(tmp, {"a": "--first needle\n" * 3})
    equal(search("needle", tmp, "--first", 2).matches, 2)
    equal(search("--first", 1, "--", "--first", tmp).matches, 1)
    equal(search("-", tmp, "--first", 2).matches, 2)


def run(sentence, function):
    """The outcome of a check, and its message where it is not to be expected."""
    with tempfile.TemporaryDirectory(prefix="search_test.") as tmp:
        try:
            function(pathlib.Path(tmp))
            return "passed", ""
        except Skip as why:
            return "skipped", f"skipped: {sentence}: {why}"
        except Exception as why:
            line = traceback.extract_tb(why.__traceback__)[-1].lineno
            inner = [f.lineno for f in traceback.extract_tb(why.__traceback__)][1:2]
            reason = str(why) or type(why).__name__
            return "failed", f"FAILED: {sentence}: line {(inner or [line])[0]}: {reason[:500]}"


def main():
    outcomes = [run(sentence, function) for sentence, function in checks]
    for _, message in outcomes:
        if message:
            print(message)
    count = [outcome for outcome, _ in outcomes].count
    print(f"{count('passed')} passed, {count('failed')} failed, {count('skipped')} skipped")
    return 1 if count("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
