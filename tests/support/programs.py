"""Random core programs: short, of every instruction, with tokens, synchronisations and mistakes; not free of races.

It must not know any device; it draws from the generator that it is given.
"""

from __future__ import annotations

import numpy as np

from corepool.config import HardwareConfig
from corepool.isa.codec import encode
from corepool.isa.table import INSTRUCTIONS, Opcode, Unit

WINDOW = 1 << 15


def _number(rng: np.random.Generator, *values: int) -> int:
    return int(rng.choice(values))


def _transfer(rng: np.random.Generator, config: HardwareConfig, longest: int) -> dict[str, int]:
    rows, blocks = _number(rng, 1, 1, 2, 3), _number(rng, 1, 1, 2, 3)
    pixels = int(rng.integers(1, longest))
    row_stride = _number(rng, pixels, pixels, pixels + 1, 2 * pixels, 0)
    block_stride = _number(rng, rows * row_stride, rows * pixels, rows * row_stride + 3, 0)
    return {
        "rows": rows,
        "blocks": blocks,
        "pixels": pixels,
        "row_stride": row_stride,
        "block_stride": block_stride,
        "address": int(rng.integers(0, WINDOW // config.word_bytes // 2)) * config.word_bytes,
        "local": int(rng.integers(0, 64)),
    }


def _compute(rng: np.random.Generator, config: HardwareConfig, opcode: Opcode) -> dict[str, int]:
    values = {name: int(rng.integers(1, 4)) for name in ("rows", "cols", "out_blocks")}
    if opcode in (Opcode.ADD, Opcode.MUL):
        return values
    values |= {name: int(rng.integers(1, 4)) for name in ("kernel_h", "kernel_w", "stride_y", "stride_x")}
    values |= {"dilation_y": 1, "dilation_x": _number(rng, 1, 2), "in_rows": 5, "in_cols": 5, "first": 1, "last": 1}
    values["row_pitch"], values["block_pitch"] = 2, 10
    if opcode is Opcode.POOL:
        values["mode"] = _number(rng, 0, 1)
    if opcode is Opcode.CONV:
        values |= {"in_blocks": _number(rng, 1, 2, 9), "shape": _number(rng, 0, 1, 2)}
    if rng.random() < 0.2 and not (opcode is Opcode.POOL and values["mode"] == 0):
        values |= {"rows": 1, "cols": 1, "out_blocks": 1, "first": 0, "last": 0}
    return values


# For each unit: its token bits, and the counters (between load, compute and save) that they take from or add to.
_TOKENS = {
    Unit.LOAD: {"wait_next": "CL", "raise_next": "LC"},
    Unit.COMPUTE: {"wait_prev": "LC", "wait_next": "SC", "raise_prev": "CL", "raise_next": "CS"},
    Unit.SAVE: {"wait_prev": "CS", "raise_prev": "SC"},
}


class Writer:
    """Writes random instructions for one core. ``tokens`` is the probability of each token bit; a ``safe`` program
    waits only for tokens that earlier instructions raise, so that it never gets stuck."""

    def __init__(
        self, rng: np.random.Generator, config: HardwareConfig, banks: list[int], tokens: float, safe: bool
    ) -> None:
        self.rng, self.config, self.banks, self.tokens, self.safe = rng, config, banks, tokens, safe
        self.raised = dict.fromkeys(("LC", "CL", "CS", "SC"), 0)

    def instruction(self) -> bytes:
        opcode = Opcode(int(self.rng.choice([1, 1, 1, 2, 2, 3, 4, 5, 6, 7])))
        if opcode is Opcode.LOAD:
            values = {"target": int(self.rng.integers(0, 5)), **_transfer(self.rng, self.config, 60)}
        elif opcode is Opcode.SAVE:
            mask = sum(1 << bank for bank in self.banks if self.rng.random() < 0.6) or 1 << self.banks[0]
            values = {"banks": mask, **_transfer(self.rng, self.config, 40)}
        else:
            values = _compute(self.rng, self.config, opcode)
        return encode(opcode, **values, **self._tokens(INSTRUCTIONS[opcode].unit))

    def _tokens(self, unit: Unit) -> dict[str, int]:
        chosen = {}
        for name, counter in _TOKENS[unit].items():
            wanted = self.rng.random() < self.tokens
            if name.startswith("wait"):
                wanted = wanted and (not self.safe or self.raised[counter] > 0)
                self.raised[counter] -= wanted
            else:
                self.raised[counter] += wanted
            chosen[name] = int(wanted)
        return chosen


def _mistake(rng: np.random.Generator, config: HardwareConfig) -> bytes:
    kind = int(rng.integers(0, 5))
    far = {"rows": 2, "blocks": 1, "pixels": 9, "row_stride": WINDOW // config.word_bytes - 8, "address": 0}
    if kind == 0:
        return encode(Opcode.LOAD, **far)
    if kind == 1:
        return encode(Opcode.SAVE, banks=1 << int(rng.integers(0, 8)), **far)
    if kind == 2:
        return encode(Opcode.SYNC, cores=int(rng.integers(1, 1 << config.cores)))
    return bytes(rng.integers(0, 256, 32, dtype=np.uint8)) if kind == 3 else encode(Opcode.END)


def streams(
    rng: np.random.Generator, config: HardwareConfig, cores: list[int], length: int = 12, mistakes: float = 0.3
) -> list[bytes]:
    """A program for each core of a lease: stretches of random instructions between synchronisations."""
    mask = sum(1 << core for core in cores)
    banks = sorted({config.bank_of(core) for core in cores})
    tokens, safe = float(rng.choice([0, 0.3, 0.6, 0.9])), mistakes == 0 or bool(rng.random() < 0.9)
    programs: list[list[bytes]] = [[] for _ in cores]
    writers = [Writer(rng, config, banks, tokens, safe) for _ in cores]
    for _ in range(int(rng.integers(1, 4))):
        for program, writer in zip(programs, writers, strict=True):
            program += [writer.instruction() for _ in range(int(rng.integers(0, length)))]
            early = int(rng.integers(0, 6)) if rng.random() < 0.5 else 0
            program.append(encode(Opcode.SYNC, cores=mask, early=early))
    for program in programs:
        program.append(encode(Opcode.END))
    if rng.random() < mistakes:
        program = programs[int(rng.integers(0, len(programs)))]
        place = int(rng.integers(0, len(program)))
        program[place : place + int(rng.integers(0, 2))] = [_mistake(rng, config)]
    return [b"".join(program) for program in programs]
