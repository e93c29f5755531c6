"""What the scripts that run the examples share. Each is run as NAME_test.py PROGRAM…, and exists for what
only the whole program against its real peer shows. Nothing depends on how fast the machine is: times are
printed, and asserted from below only, but for a guard against a hang."""

import contextlib
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
