"""Exists for operations that a context does not end, or that end for the wrong reason."""

import contextlib
import signal
import socket
import sys

from driver import check, equal, finish, main, started

PROGRAM = sys.argv[1]
LONG = 3_600_000  # milliseconds


@contextlib.contextmanager
def client(style, timeout, silence):
    """A running client, and its server's end of the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        with started(PROGRAM, style, server.getsockname()[1], timeout, silence) as process:
            with server.accept()[0] as connection:
                yield process, connection


def both_styles(function):
    for style in ("coroutine", "callback"):
        function(style)


def cut_short(process, why):
    status, out, err = finish(process)
    equal((status, err), (1, ""), "status and stderr")
    assert out.startswith("cut short: ") and out.endswith(why + "\n"), out


@check("lines are printed to the end where nothing cuts them short")
def _():
    def run(style):
        with client(style, LONG, LONG) as (process, connection):
            connection.sendall(b"one\ntw")
            equal(process.stdout.readline(), "one\n")
            connection.sendall(b"o\nthree\n")
            connection.close()
            equal(finish(process), (0, "two\nthree\n", ""))

    both_styles(run)


@check("the context's deadline ends a read that waits")
def _():
    def run(style):
        with client(style, 200, LONG) as (process, connection):
            cut_short(process, "context deadline exceeded")
            equal(connection.recv(1), b"", "the end of the connection")

    both_styles(run)


@check("the context's deadline ends a connect that nobody answers")
def _():
    def run(style):
        with socket.socket() as server, contextlib.ExitStack() as crowd:
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            for _ in range(3):  # in front of a full queue, the next one waits
                one = crowd.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(server.getsockname())
            with started(PROGRAM, style, server.getsockname()[1], 200, LONG) as process:
                cut_short(process, "context deadline exceeded")

    both_styles(run)


@check("a context whose deadline has passed ends an operation as it starts")
def _():
    def run(style):
        with started(PROGRAM, style, 9, 0, LONG) as process:
            cut_short(process, "context deadline exceeded")

    both_styles(run)


@check("a signal that Asio receives cancels the context, and with it the read")
def _():
    def run(style):
        with client(style, LONG, LONG) as (process, connection):
            connection.sendall(b"one\n")
            equal(process.stdout.readline(), "one\n")
            process.send_signal(signal.SIGINT)
            cut_short(process, "signal 2")

    both_styles(run)


@check("a timer of Asio cancels the context, and with it the read")
def _():
    def run(style):
        with client(style, LONG, 200) as (process, connection):
            cut_short(process, "the server is silent")

    both_styles(run)


main()
