"""How much a quiet tenant feels of one that floods: its 99th percentile with and without, in turns, in one run.

    python bench/server_isolation.py [seconds]

Both run the network of the bench of the request rate, each on a lease of four cores, on the simulator. The quiet tenant
sends one request at a time, the other keeps as many in flight as it is allowed. It must not know how the engine shares
the processor.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from corepool.config import HardwareConfig, preset
from corepool.errors import TooManyRequestsError
from corepool.server.api import Identity, InferRequest, LeaseRequest, Role
from corepool.server.engine.devices import open_card
from corepool.server.engine.engine import Engine
from corepool.server.store import Store, TenantRow
from server import SHAPE, make_package, warn_if_busy

PAUSE_S = 0.01  # between two requests of the quiet tenant
TURN_S = 2.0


def flood(engine: Engine, who: Identity, request: InferRequest, stop: threading.Event) -> None:
    """Keep as many requests in flight as the engine takes."""
    flying = []
    while not stop.is_set():
        try:
            flying.append(engine.submit(who, request))
        except TooManyRequestsError:
            flying.pop(0).result()
    for each in flying:
        each.result()


def measured(engine: Engine, who: Identity, request: InferRequest, seconds: float) -> list[float]:
    """Milliseconds that each request took, one at a time."""
    taken, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        engine.submit(who, request).result()
        taken.append((time.perf_counter() - begin) * 1e3)
        time.sleep(PAUSE_S)
    return taken


def compare(config: HardwareConfig, folder: Path, seconds: float) -> dict[str, float]:
    """Alone and beside the flood, in turns until each has had half of the time. Milliseconds, and their ratio."""
    package = folder / "small.cpk"
    make_package(package, config.name, stride=4)
    image = np.random.default_rng(1).normal(0, 1, SHAPE).astype(np.float32)
    request = InferRequest("small", {"input": image}, lease="four")
    tenants = [Identity(Role.TENANT, name, name) for name in ("quiet", "loud")]
    with Store(None, folder / "state") as store:
        for each in tenants:
            store.put_tenant(TenantRow(each.tenant, config.cores // 2))
        engine = Engine(config, open_card("simulator", config), store)
        engine.start()
        for each in tenants:
            engine.load_package(each, "small", "1", str(package))
            engine.create_lease(each, LeaseRequest("four", 4, 4))
            engine.submit(each, request).result()
        alone: list[float] = []
        beside: list[float] = []
        for _ in range(max(int(seconds / TURN_S / 2), 1)):
            alone += measured(engine, tenants[0], request, TURN_S)
            stop = threading.Event()
            loud = threading.Thread(target=flood, args=(engine, tenants[1], request, stop))
            loud.start()
            time.sleep(0.2)
            beside += measured(engine, tenants[0], request, TURN_S)
            stop.set()
            loud.join()
        engine.stop()
    found = {
        f"{name}_p{p}_ms": float(np.percentile(values, p))
        for name, values in (("alone", alone), ("beside", beside))
        for p in (50, 99)
    }
    return {**found, "ratio_p99": found["beside_p99_ms"] / found["alone_p99_ms"], "requests": len(alone) + len(beside)}


if __name__ == "__main__":
    warn_if_busy()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(compare(preset("u200"), Path(name), float((sys.argv[1:] or ["40"])[0])), indent=2))
