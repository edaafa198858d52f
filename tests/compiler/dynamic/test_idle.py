"""Layers that leave a lease's last cores without work: who gets what, what is written where, and the same answers.

It must not know why the static compiler leaves cores idle.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.compiler.dynamic import link
from corepool.compiler.model import ModelPackage
from corepool.compiler.static import reference
from corepool.compiler.static.compile import compile_graph
from corepool.compiler.tables import IDLE
from corepool.config import preset
from corepool.device.simulator import Simulator
from corepool.errors import PackageError
from corepool.isa.codec import decode
from corepool.isa.table import INSTRUCTION_BYTES, Opcode
from corepool.runtime.session import Session
from support.graphs import random_graph, random_input

CONFIG = preset("u200")
Instructions = list[Any]


def with_idle(package: ModelPackage, cores: int, idle: list[int]) -> ModelPackage:
    """On so many cores each layer is dealt as on fewer, and the last ones (a number for each layer) get nothing."""
    choice = package.choice.copy()
    for layer, left_out in enumerate(idle):
        choice[layer, cores - 1] = package.choice[layer, cores - left_out - 1] % IDLE + IDLE * left_out
    return replace(package, choice=choice)


def decoded(stream: Any) -> Instructions:
    raw = stream.tobytes()
    return [decode(raw[i : i + INSTRUCTION_BYTES]) for i in range(0, len(raw), INSTRUCTION_BYTES)]


def kinds(stream: Any) -> set[Opcode]:
    return {each.opcode for each in decoded(stream)}


def test_a_core_that_is_always_idle_only_meets_the_others_and_nothing_is_written_to_its_bank(
    rng: np.random.Generator,
) -> None:
    package = compile_graph(random_graph(rng, 3), CONFIG).package
    linked = link(with_idle(package, 5, [1] * len(package.layers)), range(5), CONFIG)
    assert kinds(linked.streams[4]) <= {Opcode.SYNC, Opcode.END}
    for stream in linked.streams[:4]:
        saves = [each for each in decoded(stream) if each.opcode is Opcode.SAVE]
        assert saves
        assert {each["banks"] for each in saves} == {1}


def test_the_others_do_what_they_would_do_alone(rng: np.random.Generator) -> None:
    package = compile_graph(random_graph(rng, 3), CONFIG).package
    package = with_idle(package, 4, [0] * len(package.layers))
    five = link(with_idle(package, 5, [1] * len(package.layers)), range(5), CONFIG).streams
    four = link(package, range(4), CONFIG).streams
    for ours, alone in zip(five, four, strict=False):
        mine = [each for each in decoded(ours) if each.opcode is not Opcode.SYNC]
        assert mine == [each for each in decoded(alone) if each.opcode is not Opcode.SYNC]


@settings(max_examples=15)
@given(st.integers(0, 1 << 30), st.integers(2, 16), st.data())
def test_idle_cores_change_no_answer(seed: int, cores: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, 2)
    package = compile_graph(graph, CONFIG).package
    layers = len(package.layers)
    idle = data.draw(st.lists(st.integers(0, cores - 1), min_size=layers, max_size=layers))
    inputs = random_input(rng, graph)
    expected = reference.outputs(graph, reference.execute(graph, inputs))
    with Session(Simulator(CONFIG), with_idle(package, cores, idle), range(cores)) as session:
        result = session.run(inputs)
    assert result.completion.fault is None
    for name, values in result.outputs.items():
        np.testing.assert_array_equal(values, expected[name])


def test_a_layer_cannot_leave_all_cores_idle(rng: np.random.Generator) -> None:
    package = compile_graph(random_graph(rng, 1), CONFIG).package
    replace(package, choice=package.choice % IDLE + IDLE * np.arange(16, dtype=np.int32)).check("here")
    choice = package.choice.copy()
    choice[0, 3] = choice[0, 3] % IDLE + 4 * IDLE
    with pytest.raises(PackageError, match="choice points outside"):
        replace(package, choice=choice).check("here")
