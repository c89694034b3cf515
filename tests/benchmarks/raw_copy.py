"""The physical limit: bytes from a socket to files, without DICOM.

``python -m tests.benchmarks.raw_copy serve PORT FOLDER`` writes each instance to a file of its
own, with ``--sync`` as durably as medimgd does; a process for each connection. ``send PORT FILE
...`` sends as many bytes as an association would and waits for one byte after each file.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
from pathlib import Path

from tests.benchmarks.starting_signal import report, wait_for_signal

_LENGTH_BYTES = 8
_BUFFER_BYTES = 128 * 1024
_STORED = b"\0"


def main() -> None:
    """Serve or send."""
    command, port, *rest = sys.argv[1:]
    if command == "serve":
        _serve(int(port), Path(rest[0]), is_synced="--sync" in rest)
    else:
        _send(int(port), [Path(name) for name in rest])


def _serve(port: int, folder: Path, *, is_synced: bool) -> None:
    with socket.create_server(("127.0.0.1", port)) as listener:
        for number in itertools.count():
            connection, _ = listener.accept()
            if os.fork() == 0:
                mine = folder / str(number)
                mine.mkdir()
                with connection:
                    _copy(connection, mine, is_synced=is_synced)
                os._exit(0)
            connection.close()


def _copy(connection: socket.socket, folder: Path, *, is_synced: bool) -> None:
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    for number in itertools.count():
        head = connection.recv(_LENGTH_BYTES, socket.MSG_WAITALL)
        if not head:
            return
        part, final = f"{folder}.part", f"{folder}/{number}"
        descriptor = os.open(part if is_synced else final, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        left = int.from_bytes(head, "big")
        while left:
            count = connection.recv_into(buffer, min(left, _BUFFER_BYTES))
            os.write(descriptor, buffer[:count])
            left -= count
        if is_synced:
            os.fdatasync(descriptor)
            Path(part).rename(final)
            _sync_folder(folder)
        os.close(descriptor)
        connection.sendall(_STORED)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def _send(port: int, paths: list[Path]) -> None:
    sizes = [path.stat().st_size for path in paths]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        wait_for_signal()
        for path, size in zip(paths, sizes, strict=True):
            connection.sendall(size.to_bytes(_LENGTH_BYTES, "big"))
            with path.open("rb") as file:
                connection.sendfile(file)
            if connection.recv(1) != _STORED:
                sys.exit("the copy ended too early")
    report(instances=len(paths), size=sum(sizes))


if __name__ == "__main__":
    main()
