"""Exists for loops that sleep in poll() for ever whatever the context does, or wake for nothing."""

import socket
import sys
import time

from driver import check, equal, finish, main, started

PROGRAM = sys.argv[1]


def port_of(process):
    kind, port = process.stdout.readline().split()
    equal(kind, "port")
    return int(port)


def connect(port):
    return socket.create_connection(("127.0.0.1", port), 60)


def echo(client, text):
    client.sendall(text)
    got = b""
    while len(got) < len(text):
        more = client.recv(65536)
        assert more, f"closed after {got!r}"
        got += more
    equal(got, text)


@check("clients are served at once, and the end of stdin ends both loops while all of them sleep")
def _():
    with started(PROGRAM, 3600) as process:
        port = port_of(process)
        clients = [connect(port) for _ in range(20)]
        for round in range(3):
            for i, client in enumerate(clients):
                echo(client, b"%d-%d" % (round, i) * 100)
        clients.pop(3).close()
        clients.pop().close()
        for client in clients:
            echo(client, b"still here")
        status, out, err = finish(process)  # closes stdin
        equal((status, out, err), (0, "context canceled: stdin ended\n", ""))
        for client in clients:
            equal(client.recv(1), b"", "the end of a connection")


@check("the loops sleep: they use no processor time while nothing happens")
def _():
    with started(PROGRAM, 3600) as process:
        client = connect(port_of(process))
        echo(client, b"first")

        def time_used():
            return sum(int(field) for field in open(f"/proc/{process.pid}/stat").read().split()[13:15])

        before = time_used()
        time.sleep(0.5)
        used = time_used() - before  # in hundredths of a second
        assert used < 25, f"{used} ticks in half a second"


@check("a deadline ends both loops while all of them sleep")
def _():
    with started(PROGRAM, 0.2) as process:
        client = connect(port_of(process))
        out = process.stdout.read()  # not by way of finish, which would end stdin
        assert out.startswith("context deadline exceeded: "), out
        equal(process.wait(), 0, "status")
        equal(client.recv(1), b"", "the end of a connection")


main()
