"""The dynamic compiler: every tile once, balanced tokens, right banks, typed errors; for random networks and any number
of cores."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.compiler.dynamic import link
from corepool.compiler.dynamic.deal import deal
from corepool.compiler.static.compile import compile_graph
from corepool.config import preset
from corepool.errors import LinkError
from corepool.isa.codec import decode
from corepool.isa.table import INSTRUCTION_BYTES, INSTRUCTIONS, Opcode, Unit
from support.graphs import random_graph

CONFIG = preset("u200")


def decoded(stream):
    raw = stream.tobytes()
    return [decode(raw[i : i + INSTRUCTION_BYTES]) for i in range(0, len(raw), INSTRUCTION_BYTES)]


def compiled(seed, layers=3):
    return compile_graph(random_graph(np.random.default_rng(seed), layers), CONFIG)


@given(st.lists(st.integers(0, 10_000), max_size=60), st.integers(1, 16))
def test_dealing_gives_every_package_to_one_core_in_order(latencies, cores):
    bounds = np.empty(cores + 1, np.int64)
    deal(np.array(latencies, np.int64), 0, len(latencies), cores, bounds)
    assert bounds[0] == 0
    assert bounds[-1] == len(latencies)
    assert (np.diff(bounds) >= 0).all()


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=60), st.integers(1, 16))
def test_no_core_gets_more_than_its_share_and_one_package(latencies, cores):
    bounds = np.empty(cores + 1, np.int64)
    deal(np.array(latencies, np.int64), 0, len(latencies), cores, bounds)
    sums = [sum(latencies[bounds[c] : bounds[c + 1]]) for c in range(cores)]
    assert max(sums) <= sum(latencies) / cores + max(latencies)


def test_equal_packages_are_dealt_evenly():
    bounds = np.empty(17, np.int64)
    deal(np.full(48, 7, np.int64), 0, 48, 16, bounds)
    assert bounds.tolist() == list(range(0, 49, 3))


def written_words(package, streams):
    """How often each word of DDR is written, layer by layer."""
    layers: list[Counter] = [Counter() for _ in package.layers]
    for stream in streams:
        layer = 0
        for instruction in decoded(stream):
            if instruction.opcode is Opcode.SYNC:
                assert instruction["layer"] == layer
                layer += 1
            elif instruction.opcode is Opcode.SAVE:
                i = instruction
                base = i["address"] // CONFIG.word_bytes
                for b in range(i["blocks"]):
                    for r in range(i["rows"]):
                        first = base + b * i["block_stride"] + r * i["row_stride"]
                        layers[layer].update(range(first, first + i["pixels"]))
    return layers


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 16))
def test_every_result_word_of_every_layer_is_written_exactly_once(seed, cores):
    made = compiled(seed)
    linked = link(made.package, range(cores), CONFIG)
    words = written_words(made.package, linked.streams)
    for counts, meta in zip(words, made.package.meta["layers"], strict=True):
        channels, height, width = meta["output"]
        assert set(counts.values()) == {1}
        assert len(counts) == -(-channels // CONFIG.channels) * height * width


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 16))
def test_tokens_balance_at_every_sync_and_never_deadlock(seed, cores):
    """Each stream, executed unit by unit in order, always has a unit that can go on, and no token is left at a SYNC."""
    made = compiled(seed)
    for stream in link(made.package, range(cores), CONFIG).streams:
        queues = {Unit.LOAD: [], Unit.COMPUTE: [], Unit.SAVE: []}
        tokens = Counter()
        ended = False
        for instruction in decoded(stream):
            unit = INSTRUCTIONS[instruction.opcode].unit
            if unit is not Unit.SYSTEM:
                queues[unit].append(instruction)
                continue
            run_until_idle(queues, tokens)
            assert not any(queues.values()), "a unit waits for a token that never comes"
            # Weights fetched ahead of a SYNC may have raised nothing yet: their token comes with the features behind
            # it.
            assert not any(tokens.values())
            ended = instruction.opcode is Opcode.END
        assert ended


def run_until_idle(queues, tokens):
    moved = True
    while moved:
        moved = False
        for unit, queue in queues.items():
            while queue:
                head = queue[0].values
                needs = [key for key in ("wait_prev", "wait_next") if head.get(key)]
                if any(tokens[unit, key] == 0 for key in needs):
                    break
                for key in needs:
                    tokens[unit, key] -= 1
                if head.get("raise_prev"):
                    tokens[Unit(unit - 1), "wait_next"] += 1
                if head.get("raise_next"):
                    tokens[Unit(unit + 1), "wait_prev"] += 1
                queue.pop(0)
                moved = True


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_results_go_to_the_banks_of_their_readers_and_nowhere_else(seed):
    """Every feature word that a core loads after a SYNC has been written to that core's bank (or is the network's
    input)."""
    made = compiled(seed, layers=2)
    cores = range(16)
    written: dict[int, set[int]] = {bank: set() for bank in range(CONFIG.banks)}
    maps_begin = made.package.meta["window"]["weights_bytes"]
    port = made.package.meta["inputs"][0]
    size = -(-port["channels"] // 8) * port["height"] * port["width"] * 8
    for bank in written.values():
        bank.update(range(port["offset"] // 8, (port["offset"] + size) // 8))
    per_core = [decoded(s) for s in link(made.package, cores, CONFIG).streams]
    position = [0] * 16
    for _ in made.package.layers:
        saves = []
        for core, stream in enumerate(per_core):
            while stream[position[core]].opcode not in (Opcode.SYNC, Opcode.END):
                i = stream[position[core]]
                position[core] += 1
                if i.opcode is Opcode.LOAD and i["address"] >= maps_begin:
                    assert words_of(i) <= written[CONFIG.bank_of(core)]
                elif i.opcode is Opcode.SAVE:
                    saves.append(i)
            position[core] += 1
        for i in saves:
            for bank, words in written.items():
                if i["banks"] >> bank & 1:
                    words |= words_of(i)


def words_of(i):
    base = i["address"] // CONFIG.word_bytes
    return {
        base + b * i["block_stride"] + r * i["row_stride"] + p
        for b in range(i["blocks"])
        for r in range(i["rows"])
        for p in range(i["pixels"])
    }


def test_linking_twice_gives_the_same_bytes():
    package = compiled(1).package
    first, second = (link(package, range(7), CONFIG).instructions for _ in range(2))
    assert np.array_equal(first, second)


def test_beginning_at_a_later_layer_leaves_the_earlier_ones_out():
    package = compiled(3).package
    count = len(package.layers)
    linked = link(package, [4, 5], CONFIG, first_layer=count - 1)
    assert all(sum(i.opcode is Opcode.SYNC for i in decoded(s)) == 0 for s in linked.streams)
    with pytest.raises(LinkError, match=f"layer {count} is not one of"):
        link(package, [4, 5], CONFIG, first_layer=count)


def test_layer_starts_point_behind_the_syncs():
    package = compiled(5).package
    linked = link(package, [0, 1, 2], CONFIG)
    for stream, starts in zip(linked.streams, linked.layer_starts, strict=True):
        program = decoded(stream)
        assert starts[0] == 0
        assert all(program[s - 1].opcode is Opcode.SYNC for s in starts[1:])


@pytest.mark.parametrize(
    ("cores", "text"),
    [
        ([], "not 0"),
        (range(17), "not 17"),
        ([1, 1], "different"),
        ([16], "different cores of 0..15"),
        ([-1, 2], "different"),
    ],
)
def test_impossible_cores_are_refused(cores, text):
    with pytest.raises(LinkError, match=text):
        link(compiled(1).package, cores, CONFIG)
