"""What the scripts that run the examples share. Each is run as NAME_test.py PROGRAM…, and exists for what
only the whole program against its real peer shows. Nothing depends on how fast the machine is: times are
printed, and asserted from below only, but for a guard against a hang."""

import contextlib
import re
import subprocess
import sys
import threading
import traceback

GUARD = 120  # seconds; nothing takes as long unless it hangs

checks = []


def check(sentence):
    def enlist(function):
        checks.append((sentence, function))
        return function

    return enlist


def equal(got, wanted, what="got"):
    assert got == wanted, f"{what} {got!r}, wanted {wanted!r}"


@contextlib.contextmanager
def started(*words, **options):
    """A process that runs while the caller looks at it, and not longer."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([str(word) for word in words], **{**pipes, "text": True, **options})
    guard = threading.Timer(GUARD, process.kill)  # ends what the caller reads from it
    guard.start()
    try:
        yield process
    finally:
        guard.cancel()
        process.kill()
        process.communicate()


def finish(process):
    """The status, and what is left to read of stdout and stderr, once it has ended."""
    out, err = process.communicate(timeout=GUARD)
    return process.returncode, out, err


def run(*words, **options):
    with started(*words, **options) as process:
        return finish(process)


class Log:
    """What a server says on stderr, by log.hpp: lines of time, id and text. Read by a thread of its own."""

    def __init__(self, process):
        self.lines = []
        self.more = threading.Condition()
        self.process = process
        self.thread = threading.Thread(target=self.read)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.thread.join()

    def read(self):
        for line in self.process.stderr:
            found = re.fullmatch(r"(\d+\.\d+) (\S+) (.*)\n", line)
            with self.more:
                self.lines.append((float(found[1]), found[2], found[3]) if found else (0, "", line))
                self.more.notify_all()
        with self.more:
            self.lines.append((0, "", "end of log"))
            self.more.notify_all()

    def wait(self, condition):
        """The first line that meets a condition."""
        seen = 0
        while True:
            for line in self.lines[seen:]:
                if condition(line):
                    return line
                seen += 1
            self.wait_until(lambda: len(self.lines) > seen)

    def wait_until(self, condition):
        with self.more:
            assert self.more.wait_for(condition, GUARD), f"waited too long, after {self.lines[-20:]}"

    def says(self, id, what):
        return self.wait(lambda line: line[1] == id and what in line[2])


def main():
    failed = 0
    for sentence, function in checks:
        try:
            function()
        except Exception as why:
            failed += 1
            print(f"FAILED: {sentence}: {str(why) or type(why).__name__}")
            traceback.print_exc()
    print(f"{len(checks) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
