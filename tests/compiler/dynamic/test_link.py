"""The dynamic compiler: every tile once, balanced tokens, right banks, typed errors; for random networks and any number
of cores."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corepool.compiler.dynamic import link
from corepool.compiler.dynamic.deal import CLOSE, deal
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


def least_largest(latencies, cores):
    """The largest run of the most even way to deal, by trying every last cut."""
    ends = np.concatenate([[0], np.cumsum(latencies)])
    least = ends.copy()  # of the first packages, dealt to one core
    for _ in range(cores - 1):
        least = [min(max(least[j], ends[i] - ends[j]) for j in range(i + 1)) for i in range(len(ends))]
    return int(least[-1])


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=24), st.integers(1, 16))
def test_the_largest_run_is_near_the_least_that_there_is(latencies, cores):
    bounds = np.empty(cores + 1, np.int64)
    deal(np.array(latencies, np.int64), 0, len(latencies), cores, bounds)
    largest = max(sum(latencies[bounds[c] : bounds[c + 1]]) for c in range(cores))
    least = least_largest(latencies, cores)
    assert least <= largest <= least + least // CLOSE


def test_equal_packages_are_dealt_evenly():
    bounds = np.empty(17, np.int64)
    deal(np.full(48, 7, np.int64), 0, 48, 16, bounds)
    assert bounds.tolist() == list(range(0, 49, 3))


def written_words(package, linked):
    """How often each word of DDR is written, layer by layer."""
    layers: list[Counter] = [Counter() for _ in package.layers]
    for stream, starts in zip(linked.streams, linked.layer_starts, strict=True):
        for place, instruction in enumerate(decoded(stream)):
            if instruction.opcode is Opcode.SAVE:
                layer = int(np.searchsorted(starts, place, side="right")) - 1
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
    words = written_words(made.package, linked)
    for counts, meta in zip(words, made.package.meta["layers"], strict=True):
        channels, height, width = meta["output"]
        assert set(counts.values()) == {1}
        assert len(counts) == -(-channels // CONFIG.channels) * height * width


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 16))
def test_tokens_balance_and_never_deadlock(seed, cores):
    """Each stream, executed unit by unit in order, always has a unit that can go on: up to each SYNC all loads and
    computations, and as many saves as it waits for. At the end no token is left."""
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
            ended = instruction.opcode is Opcode.END
            assert ended or instruction["early"] >= 1
        assert not any(tokens.values())
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


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([(16,), (16,), (5,), (2, 7, 8, 15)]))
def test_what_is_loaded_has_been_written_to_that_bank_before(seed, cores):
    """Every feature word that a core loads is the network's input, or was written to the core's bank by a save that had
    to be at its end when the cores met last: an early SYNC leaves the latest ones of each core undone."""
    made = compiled(seed, layers=5)
    cores = range(cores[0]) if len(cores) == 1 else cores
    written: dict[int, set[int]] = {bank: set() for bank in range(CONFIG.banks)}
    maps_begin = made.package.meta["window"]["weights_bytes"]
    port = made.package.meta["inputs"][0]
    size = -(-port["channels"] // 8) * port["height"] * port["width"] * 8
    for bank in written.values():
        bank.update(range(port["offset"] // 8, (port["offset"] + size) // 8))
    per_core = [decoded(s) for s in link(made.package, cores, CONFIG).streams]
    stages = [split_at_syncs(stream) for stream in per_core]
    assert len({len(stage) for stage in stages}) == 1
    saves: list[list] = [[] for _ in cores]
    for number in range(len(stages[0])):
        for place, core in enumerate(cores):
            part, early = stages[place][number]
            for i in part:
                if i.opcode is Opcode.LOAD and i["address"] >= maps_begin:
                    assert words_of(i) <= written[CONFIG.bank_of(core)]
                elif i.opcode is Opcode.SAVE:
                    saves[place].append(i)
            done = len(saves[place]) - max(early - 1, 0)
            stages[place][number] = saves[place][: max(done, 0)]
            saves[place] = saves[place][max(done, 0) :]
        for place in range(len(per_core)):
            for i in stages[place][number]:
                for bank, words in written.items():
                    if i["banks"] >> bank & 1:
                        words |= words_of(i)


def split_at_syncs(stream):
    """The instructions up to each SYNC (or END), and how early that is."""
    parts, current = [], []
    for i in stream:
        if i.opcode in (Opcode.SYNC, Opcode.END):
            parts.append((current, i["early"] if i.opcode is Opcode.SYNC else 0))
            current = []
        else:
            current.append(i)
    return parts


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


def test_layer_starts_tell_where_syncs_belong():
    """A SYNC carries the number of the layer that is at its end there: it stands right before the next one, or behind
    the first package of it."""
    for seed in range(4):
        linked = link(compiled(seed, 5).package, [0, 1, 2], CONFIG)
        for stream, starts in zip(linked.streams, linked.layer_starts, strict=True):
            program = decoded(stream)
            assert starts[0] == 0
            assert (np.diff(starts) > 0).all()
            for place, i in enumerate(program):
                if i.opcode is Opcode.SYNC:
                    following = starts[i["layer"] + 1]
                    assert following == place + 1 or following < place


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
