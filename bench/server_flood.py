"""How much a quiet tenant feels of one that floods over REST: its latencies with and without, in turns, in one run.

    python bench/server_flood.py [seconds]

Both send 1 x 3 x 224 x 224 float32 values in binary to a server process of its own. The quiet tenant sends one request
at a time; the other has 32 connections that ask again as soon as they are answered, whatever the answer: first within
its limits, then far over its rate, where nearly all that it gets is 429. It must not know how the server shares itself.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np

from server import ask, make_package, processor_s, requests, start, warn_if_busy

CONNECTIONS = 32
PAUSE_S = 0.01  # between two requests of the quiet tenant
TURN_S = 2.0
RATE = 50  # requests a second that the flooding tenant may send, in the second part


def flood(port: int, request: bytes, going: Synchronized[int], counts: Any) -> None:
    """Ask without end while ``going`` is 1; ``counts``: answers, refusals."""

    async def client() -> None:
        writer = None
        while True:
            if not going.value:
                await asyncio.sleep(0.01)
                continue
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
                writer.write(request)
                await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(length_of(head))
                counts[0 if head[9:12] == b"200" else 1] += 1
            except (OSError, asyncio.IncompleteReadError):
                writer = None

    async def clients() -> None:
        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))

    asyncio.run(clients())


def length_of(head: bytes) -> int:
    found = re.search(rb"\r\ncontent-length: (\d+)", head)
    assert found is not None
    return int(found[1])


def measured(port: int, request: bytes, seconds: float) -> Iterator[float]:
    """Milliseconds that each request took, one at a time. Raises SystemExit if one was refused."""
    end = time.perf_counter() + seconds
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as file:
        while time.perf_counter() < end:
            begin = time.perf_counter()
            connection.sendall(request)
            head = file.readline()
            if b" 200 " not in head:
                raise SystemExit(f"the quiet tenant was refused: {head!r}")
            while not head.endswith(b"\r\n\r\n"):
                head += file.readline()
            file.read(length_of(head))
            yield (time.perf_counter() - begin) * 1e3
            time.sleep(PAUSE_S)


def compared(port: int, pid: int, keys: dict[str, str], seconds: float) -> dict[str, float]:
    """Alone and beside the flood, in turns. Milliseconds, ratios, and what the flood got a second."""
    going, counts = multiprocessing.Value("i", 0), multiprocessing.Array("q", 2, lock=False)
    quiet, loud = (requests(keys[name])[0] for name in ("quiet", "loud"))
    flooding = multiprocessing.Process(target=flood, args=(port, loud, going, counts), daemon=True)
    flooding.start()
    alone: list[float] = []
    beside: list[float] = []
    flooded = spent = 0.0
    try:
        list(measured(port, quiet, 0.5))
        for _ in range(max(int(seconds / TURN_S / 2), 1)):
            alone += measured(port, quiet, TURN_S)
            going.value = 1
            time.sleep(0.3)
            before, begin = processor_s(pid), time.perf_counter()
            beside += measured(port, quiet, TURN_S)
            spent += processor_s(pid) - before
            flooded += time.perf_counter() - begin
            going.value = 0
            time.sleep(1.5)  # what is on its way ends
    finally:
        flooding.kill()
        flooding.join()
    found = {
        f"{name}_p{p}_ms": float(np.percentile(values, p))
        for name, values in (("alone", alone), ("beside", beside))
        for p in (50, 99)
    }
    return {
        **found,
        "ratio_p50": found["beside_p50_ms"] / found["alone_p50_ms"],
        "ratio_p99": found["beside_p99_ms"] / found["alone_p99_ms"],
        "flood_answered_per_s": counts[0] / flooded,
        "flood_refused_per_s": counts[1] / flooded,
        "processors_of_the_server": spent / flooded,
    }


@contextmanager
def serving(folder: Path) -> Iterator[tuple[int, int, dict[str, str], Any]]:
    """A server with both tenants: its port, process id, the tenants' keys, and what changes the flooding one."""
    make_package(folder / "small.cpk", "u200", stride=4)
    process, port, key, admin = start(folder, "u200")
    try:
        url = f"http://127.0.0.1:{port}"
        loud = ask(url, "POST", "/v2/corepool/tenants", admin, {"name": "loud", "quota_cores": 4})["key"]
        made = ask(url, "PUT", "/v2/corepool/models/small/versions/1/model", loud, (folder / "small.cpk").read_bytes())
        while made["state"] in ("queued", "running"):
            time.sleep(0.2)
            made = ask(url, "GET", f"/v2/corepool/compilations/{made['id']}", loud)

        def change(**limits: Any) -> None:
            ask(url, "PATCH", "/v2/corepool/tenants/loud", admin, limits)

        yield port, process.pid, {"quiet": key, "loud": loud}, change
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def main(seconds: float) -> None:
    """Measure and print."""
    warn_if_busy()
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as (port, pid, keys, change):
        result = {"within_limits": compared(port, pid, keys, seconds)}
        change(requests_per_s=RATE, burst=RATE)
        result["over_its_rate"] = compared(port, pid, keys, seconds)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(float((sys.argv[1:] or ["24"])[0]))
