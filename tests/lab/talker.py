"""A program for `test_ports`: servers that answer with their name and the caller's address, and a sender that never
pauses.

It runs in one namespace and uses only the standard library.

    talker.py serve NAME [ADDRESS:]PORT…  answer on tcp and udp
    talker.py call ADDRESS PORT PROTOCOL  one call; prints the answer, or nothing
    talker.py send ADDRESS PORT SOURCE    datagrams from a fixed port; each line on standard input is answered by what
                                          was sent, and for the numbers that were answered, by whom and as whom
"""

import json
import select
import socket
import sys
import time

PAUSE, PATIENCE = 0.005, 2.0


def serve(name: str, *ports: str) -> None:
    heard: dict[int, socket.socket] = {}
    for word in ports:
        address, _, port = word.rpartition(":")
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            ear = socket.socket(socket.AF_INET, kind)
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ear.bind((address, int(port)))
            if kind == socket.SOCK_STREAM:
                ear.listen(16)
            heard[ear.fileno()] = ear
    print("ready", flush=True)
    while True:
        for ear in select.select(list(heard.values()), [], [])[0]:
            if ear.type == socket.SOCK_STREAM:
                came, (peer, _) = ear.accept()
                with came:
                    came.sendall(f"{name} {ear.getsockname()[1]} {peer}".encode())
                continue
            data, sender = ear.recvfrom(99)
            ear.sendto(f"{name} {ear.getsockname()[1]} {sender[0]} {data.decode()}".encode(), sender)


def call(address: str, port: str, protocol: str) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as caller:
        caller.settimeout(PATIENCE)
        try:
            caller.connect((address, int(port)))
            caller.send(b"0")
            print(caller.recv(99).decode())
        except OSError as error:
            print("" if isinstance(error, TimeoutError) else error.strerror)


def send(address: str, port: str, source: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
        mouth.bind(("", int(source)))
        sent, answers, due = 0, {}, time.monotonic()
        while True:
            for ready in select.select([mouth, sys.stdin], [], [], max(due - time.monotonic(), 0))[0]:
                if ready is sys.stdin:
                    if not sys.stdin.readline():
                        return
                    print(json.dumps({"sent": sent, "answers": answers}), flush=True)
                    continue
                try:
                    who, _, seen, number = mouth.recv(99).decode().split()
                    answers[int(number)] = [who, seen]
                except OSError:
                    continue  # an ICMP error
            if time.monotonic() >= due:
                due += PAUSE
                sent += 1
                try:
                    mouth.sendto(str(sent).encode(), (address, int(port)))
                except OSError:
                    continue


if __name__ == "__main__":
    {"serve": serve, "call": call, "send": send}[sys.argv[1]](*sys.argv[2:])
