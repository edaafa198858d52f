"""Inferences that change cores between two layers on the compiled hardware, and what a new tenant finds on a core.

It must not know the insides of any device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from corepool.compiler.model import ModelPackage
from corepool.compiler.static.compile import compile_graph
from corepool.config import HardwareConfig, preset
from corepool.device.base import Device
from corepool.device.rtl import RtlDevice
from corepool.device.simulator import Simulator
from corepool.isa.codec import encode
from corepool.isa.table import Opcode, Target
from corepool.runtime.session import Session
from support.graphs import random_graph, random_input

TINY = preset("tiny")
DEVICES: dict[str, Callable[[HardwareConfig], Device]] = {"simulator": Simulator, "rtl": RtlDevice}
everywhere = pytest.mark.parametrize("make", DEVICES.values(), ids=DEVICES.keys())
MOVES = (((0,), (1, 2)), ((0, 1, 2, 3), (3,)), ((2, 1), (2, 1)), ((3,), (0, 2, 1)))


@cache
def network() -> tuple[ModelPackage, dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    graph = random_graph(rng, 5, size=12)
    return compile_graph(graph, TINY).package, random_input(rng, graph)


def switched(
    make: Callable[[HardwareConfig], Device], passing: int, origin: tuple[int, ...], target: tuple[int, ...]
) -> tuple[object, ...] | None:
    """Outputs and costs of an inference that changes cores behind a layer; cycles of both of its halves. None if it has
    no layer's end there."""
    package, inputs = network()
    with Session(make(TINY), package, origin) as session:
        session.start(inputs)
        session.stop(passing=passing)
        saved = session.suspend()
        if saved is None:
            return None
        switch = session.resume(saved, target)
        result = session.finish()
    sizes = (switch.saved_bytes, switch.loaded_bytes, switch.weight_bytes, switch.stream_bytes, switch.clear_cycles)
    return result.raw, saved.data.tobytes(), saved.next_layer, saved.cycles, result.completion.cycles, sizes


def test_hardware_and_simulator_switch_alike() -> None:
    """Same state, same bytes, same cycles before and behind the switch, at every layer."""
    package, inputs = network()
    with Session(Simulator(TINY), package, (0,)) as session:
        whole = session.run(inputs).raw
    switches = 0
    for passing in range(len(package.layers)):
        origin, target = MOVES[passing % len(MOVES)]
        expected = switched(Simulator, passing, origin, target)
        assert switched(RtlDevice, passing, origin, target) == expected
        if expected is not None:
            assert expected[0] == whole
            switches += 1
    assert switches >= 3


@everywhere
def test_a_new_tenant_finds_zeros(make: Callable[[HardwareConfig], Device]) -> None:
    """What one lease left in the window and in the on-chip memories of a core is gone for the next."""
    device = make(TINY)
    size = TINY.result_words * TINY.word_bytes
    save = encode(Opcode.SAVE, banks=1, rows=1, blocks=1, pixels=TINY.result_words, address=0)
    end = encode(Opcode.END)
    load = encode(Opcode.LOAD, target=Target.RESULT, rows=1, blocks=1, pixels=TINY.result_words, raise_next=1)
    wait = encode(Opcode.ADD, wait_prev=1, raise_next=1, out_blocks=1, rows=1, cols=1)
    tables = b"".join(
        encode(Opcode.LOAD, target=target, rows=1, blocks=1, pixels=64) for target in (0, 1, 2, Target.LUT)
    )
    secret = np.random.default_rng(1).integers(1, 256, size, dtype=np.uint8)
    old = device.open_lease((0,), 1 << 14)
    device.write(old, 0, secret)
    device.load_streams(old, [load + tables + wait + end], 1 << 13)
    assert device.run(old).fault is None
    probe = device.open_lease((1,), 1 << 14)  # a neighbour that stays is not cleared
    device.write(probe, 0, secret)
    device.close_lease(old)
    new = device.open_lease((0,), 1 << 14)
    assert not device.read(new, 0, 1 << 14).any()
    device.write(new, 0, np.full(size, 7, np.uint8))
    device.load_streams(new, [save + end], 1 << 13)
    assert device.run(new).fault is None
    assert not device.read(new, 0, size).any()
    assert np.array_equal(device.read(probe, 0, size), secret)


@everywhere
def test_a_core_that_keeps_its_tenant_keeps_its_memories(make: Callable[[HardwareConfig], Device]) -> None:
    """The counterpart: without a change of hands or a clearing, results stay for the next run."""
    device = make(TINY)
    count = 20
    size = {"rows": 1, "blocks": 1, "pixels": count}
    secret = np.random.default_rng(2).integers(1, 256, count * TINY.word_bytes, dtype=np.uint8)
    lease = device.open_lease((2,), 1 << 14)
    device.write(lease, 0, secret)
    load = encode(Opcode.LOAD, target=Target.RESULT, **size)
    save = encode(Opcode.SAVE, banks=2, address=4096, **size)
    end = encode(Opcode.END)
    for code, found in ((load + end, False), (save + end, True)):
        device.load_streams(lease, [code], 1 << 13)
        assert device.run(lease).fault is None
        assert np.array_equal(device.read(lease, 4096, secret.size), secret) == found
    device.clear(lease)
    device.load_streams(lease, [save + end], 1 << 13)
    device.write(lease, 4096, secret)
    assert device.run(lease).fault is None
    assert not device.read(lease, 4096, secret.size).any()
