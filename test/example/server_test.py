"""Exists for requests that outlive their clients, and for threads, descriptors and memory that outlive
requests. Searches that must last read a file of 256 GiB that is one hole behind a few lines."""

import collections
import contextlib
import os
import pathlib
import re
import resource
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from driver import GUARD, Log, check, equal, main, started

PROGRAM = sys.argv[1]
SANITIZED = len(sys.argv) > 2  # then freed memory is kept, to be watched
THIRD = 333  # of the requests at once
REQUESTS = 3 * THIRD


@contextlib.contextmanager
def server():
    with tempfile.TemporaryDirectory(prefix="server_test.") as tree:
        os.mkdir(tree + "/sub")
        with open(tree + "/sub/endless", "w") as file:
            file.write("".join(f"a needle in line {n}\n" for n in range(1, 101)))
            file.write("some text\n" * 20_000)
            file.truncate(256 << 30)
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        with started(PROGRAM, 0, tree, env=environment) as process:
            with Log(process) as log:
                yield process, log, int(process.stdout.readline().split()[1]), tree


def id_of(log, text):
    return log.wait(lambda line: line[2] == f"searches for '{text}'")[1]


def curl(port, *targets, options=()):
    """The status and the body of each answer, and how many connections it took."""
    form = "\\n%{http_code} %{num_connects}\\n"
    urls = [f"http://127.0.0.1:{port}{target}" for target in targets]
    done = subprocess.run(["curl", "-sS", "-w", form, *options, *urls], capture_output=True, text=True, timeout=GUARD)
    answers = re.findall(r"(.*?)\n(\d+) (\d+)\n", done.stdout, re.DOTALL)
    equal(len(answers), len(targets), "answers")
    return [(int(status), body) for body, status, _ in answers], sum(int(each[2]) for each in answers)


@check("a search is answered with the lines that it found; one connection serves several")
def _():
    with server() as (process, log, port, tree):
        answers, connections = curl(port, "/search?q=needle&first=3", "/search?first=1&timeout=1h&q=in+line%2042")
        path = f"{tree}/sub/endless"
        equal(answers, [(200, "".join(f"{path}:{n}: a needle in line {n}\n" for n in (1, 2, 3))),
                        (200, f"{path}:42: a needle in line 42\n")])
        equal(connections, 1, "connections")
        log.says(id_of(log, "needle"), "is answered 200")


@check("what is no search is answered so")
def _():
    with server() as (process, log, port, tree):
        for target in ("/", "/search", "/search?q=", "/find?q=a", "/search?q=a&timeout=nan", "/search?q=a&timeout=-1s",
                       "/search?q=a&timeout=5"):
            status, body = curl(port, target)[0][0]
            equal(status, 400, target)
            assert body, target


@check("a search whose time is up is answered 504, and stops; not early")
def _():
    with server() as (process, log, port, tree):
        start = time.monotonic()
        status, body = curl(port, "/search?q=nothing&timeout=300ms")[0][0]
        assert time.monotonic() - start >= 0.3
        equal(status, 504)
        assert "context deadline exceeded" in body, body
        log.says(id_of(log, "nothing"), "stopped searching")


@check("a search whose client is killed stops")
def _():
    with server() as (process, log, port, tree):
        with started("curl", "-sS", f"http://127.0.0.1:{port}/search?q=nothing&timeout=1h") as client:
            id = id_of(log, "nothing")
            client.kill()
            log.says(id, "is not answered: the client went away")
            log.says(id, "stopped searching")


@check("SIGTERM ends what is in flight with 503, and what is idle; then the server ends")
def _():
    with server() as (process, log, port, tree), contextlib.ExitStack() as clients:
        idle = clients.enter_context(socket.create_connection(("127.0.0.1", port), GUARD))
        half = clients.enter_context(socket.create_connection(("127.0.0.1", port), GUARD))
        half.sendall(b"GET /search?q=")
        waiting = [clients.enter_context(started("curl", "-sS", "-w", " %{http_code}",
                                                 f"http://127.0.0.1:{port}/search?q=nothing&timeout=1h"))
                   for _ in range(10)]
        log.wait_until(lambda: sum("searches for" in what for _, _, what in log.lines) >= 1)
        process.send_signal(signal.SIGTERM)
        answers = [client.communicate(timeout=GUARD)[0] for client in waiting]
        # What is searched for is answered; of the others, one may come too late to be read.
        assert any(answer.endswith(" 503") for answer in answers), answers
        equal(idle.recv(1), b"", "the end of an idle connection")
        equal(half.recv(1), b"", "the end of half a request")
        equal(process.wait(timeout=GUARD), 0, "status")
        log.wait(lambda line: line[1] == "-" and "ends: " in line[2])
        searched = [line for line in log.lines if "searches for" in line[2]]
        stopped = [line for line in log.lines if "stopped searching" in line[2]]
        equal(len(stopped), len(searched), "searches stopped")


def state(process):
    """Its threads, descriptors and KiB of memory."""
    assert process.poll() is None, f"the server ended with status {process.returncode}"
    proc = pathlib.Path(f"/proc/{process.pid}")
    memory = int(re.search(r"VmRSS:\s*(\d+)", (proc / "status").read_text())[1])
    return len(os.listdir(proc / "task")), len(os.listdir(proc / "fd")), memory


def settle(process, counts):
    """Waits until the server is back to as many threads and descriptors. If that never happens, the guard ends it."""
    while state(process)[:2] != counts:
        time.sleep(0.01)


class Storm:
    """Requests of three kinds, all at once: some that time out, some that are answered, and some whose clients
    leave, half of them while they wait for their search to begin, half in the midst of it."""

    def __init__(self, port, log):
        self.port, self.log = port, log
        self.left = {}  # text: when its client left
        self.answers = collections.Counter()
        self.selector = selectors.DefaultSelector()
        self.clients = {}
        first_line = len(log.lines)
        for n in range(REQUESTS):
            kind = ("left", "late", "served")[n % 3]
            self.start(kind, f"{kind}-{n}")
        leaving = [text for text in self.clients if text.startswith("left-")]
        for text in leaving[::2]:
            self.leave(text)
        self.to_leave = set(leaving[1::2])
        while self.clients:
            for key, _ in self.selector.select(0.001):
                self.receive(key.data)
            with log.more:
                new, first_line = log.lines[first_line:], len(log.lines)
            for _, _, what in new:
                text = searched_for(what)
                if text in self.to_leave:
                    self.leave(text)
        self.selector.close()

    def start(self, kind, text):
        options = {"left": "timeout=1h", "late": "timeout=400ms", "served": "timeout=1h&first=10"}[kind]
        query = "needle" if kind == "served" else text
        client = socket.create_connection(("127.0.0.1", self.port), GUARD)
        client.sendall(f"GET /search?q={query}&{options} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        client.setblocking(False)
        self.clients[text] = client, []
        self.selector.register(client, selectors.EVENT_READ, text)

    def receive(self, text):
        client, parts = self.clients[text]
        got = client.recv(65536)
        parts.append(got)
        if not got:
            self.answers[text.split("-")[0], b"".join(parts)[9:12]] += 1
            self.close(text)

    def leave(self, text):
        self.left[text] = time.monotonic()
        self.close(text)

    def close(self, text):
        client, _ = self.clients.pop(text)
        self.selector.unregister(client)
        client.close()


def searched_for(what):
    return what.removeprefix("searches for '").removesuffix("'")


def searches(lines):
    """What was searched for, and when the search ended, for each search that began."""
    texts = {id: searched_for(what) for _, id, what in lines if "searches for" in what}
    return [(texts[id], when) for when, id, what in lines if what in ("stopped searching", "finished searching")]


def quiet(lines):
    """Whether the server is through with a storm: no client to be missed, and no search to be stopped any more."""
    count = collections.Counter(what.split("'")[0] for _, _, what in lines)
    missed = count["is not answered: the client went away"]
    ended = count["stopped searching"] + count["finished searching"]
    return missed == THIRD and ended == count["searches for "]


@check("a thousand requests at once leave no thread, descriptor or memory behind, and no search goes on")
def _():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4 * REQUESTS) if most >= 0 else 4 * REQUESTS, most))
    with server() as (process, log, port, tree):
        descriptors = state(process)[1]
        curl(port, "/search?q=needle&first=1")  # starts the last thread there is to be, the timer's
        baseline, memory, ends = (state(process)[0], descriptors), [], []
        for _ in range(5):
            from_here = len(log.lines)
            storm = Storm(port, log)
            equal(storm.answers, {("late", b"504"): THIRD, ("served", b"200"): THIRD}, "answers")
            log.wait_until(lambda: quiet(log.lines[from_here:]))
            ends += [stopped - storm.left[text] for text, stopped in searches(log.lines[from_here:])
                     if text in storm.left]
            settle(process, baseline)
            memory.append(state(process)[2])
        percent = statistics.quantiles(ends, n=100)
        print(f"abandoned searches stopped: {len(ends)}, after {1e3 * percent[49]:.2f} ms (median), "
              f"{1e3 * percent[98]:.2f} ms (99 %), {1e3 * max(ends):.2f} ms (worst)")
        print(f"threads and descriptors: {baseline}; KiB after each {REQUESTS} requests: {memory}")
        assert len(ends) >= THIRD, f"only {len(ends)} searches were abandoned midway"
        if not SANITIZED:
            # The first rounds are for what is kept for the next.
            assert memory[-1] - memory[1] < 1024, memory
        process.send_signal(signal.SIGTERM)
        equal(process.wait(timeout=GUARD), 0, "status")


main()
