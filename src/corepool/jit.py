"""The one door to numba: its decorator, with a cache on disk that can never be stale, and some words that it lacks.

It must not know what is compiled. numba keeps compiled code until the function's own file changes, even if a function
that it calls in another file did change. So the cache's folder is named after the contents of all files that matter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import caching, cgutils
from numba.extending import intrinsic

_COMPILED = (b"njit", b"@hot", b"@inlined")  # what files with compiled functions hold
_CONSTANTS = ("table.py", "tables.py", "rows.py")  # whose numbers compiled code has taken in
_KEPT_SECONDS = 14 * 86400  # folders of other versions go when nobody has used them for so long


def _digest() -> str:
    """16 hex digits over numba's version and all files with compiled functions or their constants."""
    root = Path(__file__).parent
    state = hashlib.sha256(numba.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        text = path.read_bytes()
        if path.name in _CONSTANTS or any(mark in text for mark in _COMPILED):
            state.update(str(path.relative_to(root)).encode())
            state.update(text)
    return state.hexdigest()[:16]


def _prepare() -> None:
    """Point numba at a folder for exactly this source, unless the user has chosen one (NUMBA_CACHE_DIR)."""
    if numba.config.CACHE_DIR:  # type: ignore[attr-defined]
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corepool" / "compiled"
    folder = base / _digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        for other in base.iterdir():
            if time.time() - other.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:
        return  # no home to write to: numba falls back to folders of its own
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]


def _own_names() -> None:
    """Give each piece of compiled code that is saved a file name of its own.

    numba numbers the files of a function: two processes that compile it for different types at the same time both take
    the first free number, and the code of one may then be found under the other's types. Whoever loads it crashes.
    """

    def data_name(self: Any, number: int) -> str:
        return f"{self._index_name.removesuffix('.nbi')}.{number}-{uuid.uuid4().hex[:16]}.nbc"

    caching.IndexDataCacheFile._data_name = data_name  # type: ignore[method-assign]


_prepare()
_own_names()

njit: Callable[..., Any] = numba.njit


def _nothing(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], True, "nothing")
        return context.get_dummy_value()

    return types.none(), generate


# In compiled code, as the last word of a loop's body: the loop is left as it is written. One that mostly runs once or
# twice only loses if it is made ready for vectors, since that has to be decided each time it is entered. Nothing is
# emitted, but the compiler takes it for an instruction that cannot be done for several turns at once.
one_by_one: Callable[..., None] = intrinsic(_nothing)


PIXELS, ROWS = 16, 4  # of what ``multiply_block`` fills: so many sums stay in registers on all usual processors


def _multiply_block(
    typing_context: Any, planes: Any, places: Any, count: Any, x: Any, factors: Any, first: Any, width: Any, sums: Any,
    run: Any,
) -> Any:  # fmt: skip
    kinds = (planes, places, count, x, factors, first, width, sums, run)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        planes, places, count, x, factors, first, width, sums, run = (
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        vector = ir.VectorType(ir.FloatType(), PIXELS)
        zero = ir.Constant(vector, [0.0] * PIXELS)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(ROWS)]

        def in_place(base: Any, index: Any) -> Any:
            return builder.bitcast(builder.gep(base, [index]), vector.as_pointer())

        with cgutils.for_range(builder, count) as turn:
            place = builder.add(builder.load(builder.gep(places, [turn.index])), x)
            values = builder.load(in_place(planes, place), align=4)
            factor = builder.gep(factors, [builder.add(builder.mul(turn.index, width), first)])
            for row, total in enumerate(totals):
                one = builder.load(builder.gep(factor, [ir.Constant(ir.IntType(64), row)]))
                alone = builder.insert_element(zero, one, ir.Constant(ir.IntType(32), 0))
                spread = builder.shuffle_vector(
                    alone, zero, ir.Constant(ir.VectorType(ir.IntType(32), PIXELS), [0] * PIXELS)
                )
                builder.store(builder.fadd(builder.load(total), builder.fmul(values, spread, ("contract",)),
                                           ("contract",)), total)  # fmt: skip
        for row, total in enumerate(totals):
            at = builder.add(builder.mul(builder.add(first, ir.Constant(ir.IntType(64), row)), run), x)
            builder.store(builder.load(total), in_place(sums, at), align=4)
        return context.get_dummy_value()

    return types.none(*kinds), generate


# In compiled code: for ROWS rows of ``sums``, ``run`` apart, from row ``first`` on, and PIXELS columns from ``x`` on:
# the sum over n < ``count`` of ``planes[places[n] + column]`` times ``factors[n * width + row]``. The compiler's own
# loops would keep the sums in memory, and take longer to begin and to end than such a block takes. Nothing is checked;
# whole numbers are numbers of 64 bits, arrays are of one dimension and without gaps.
multiply_block: Callable[..., None] = intrinsic(_multiply_block)


EIGHT = 8  # regions that ``meet`` looks at together
_WORD = ir.IntType(64)
_EIGHT = ir.VectorType(ir.IntType(32), EIGHT)


def _data_of(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value).data


def _spread(builder: Any, value: Any) -> Any:
    """A number of 64 bits in all lanes."""
    undefined = ir.Constant(_EIGHT, ir.Undefined)
    alone = builder.insert_element(
        undefined, builder.trunc(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 0)
    )  # fmt: skip
    return builder.shuffle_vector(alone, undefined, ir.Constant(_EIGHT, [0] * EIGHT))


def _meet(
    typing_context: Any, reach: Any, number: Any, row: Any, row_end: Any, block: Any, block_end: Any
) -> Any:  # fmt: skip
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base = _data_of(context, builder, reach, arguments[0])
        first = builder.mul(arguments[1], ir.Constant(_WORD, 4 * EIGHT))
        row_v, row_end_v, block_v, block_end_v = (
            builder.load(
                builder.bitcast(
                    builder.gep(base, [builder.add(first, ir.Constant(_WORD, i * EIGHT))]), _EIGHT.as_pointer()
                ),
                align=4,
            )
            for i in range(4)
        )
        row, row_end, block, block_end = (_spread(builder, value) for value in arguments[2:])

        def both(a: Any, b: Any, c: Any, d: Any) -> Any:
            return builder.and_(a, builder.and_(b, builder.and_(c, d) if d is not None else c))

        less, up_to = (lambda a, b: builder.icmp_signed("<", a, b)), (lambda a, b: builder.icmp_signed("<=", a, b))
        hit = both(less(row_v, row_end), less(row, row_end_v), less(block_v, block_end), less(block, block_end_v))
        rows = both(hit, up_to(row_v, row), up_to(row_end, row_end_v), None)
        held = both(rows, up_to(block_v, block), up_to(block_end, block_end_v), None)
        bits = [builder.zext(builder.bitcast(each, ir.IntType(EIGHT)), _WORD) for each in (hit, rows, held)]
        shifted = [builder.shl(each, ir.Constant(_WORD, i * EIGHT)) for i, each in enumerate(bits)]
        return builder.or_(shifted[0], builder.or_(shifted[1], shifted[2]))

    return types.int64(reach, *[types.int64] * 5), generate


# In compiled code: how a region (row, end, block, end) meets eight others, whose rows, ends, blocks and ends are
# ``reach[number]`` [4, 8] of 32 bits. A bit for each: those that hold something of it, from bit 8 on those that hold
# all its rows as well, and from bit 16 on those that hold all of it. Nothing is checked; ``reach`` has no gaps.
meet: Callable[..., int] = intrinsic(_meet)


def _fetch(typing_context: Any, rows: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.bitcast(
            builder.gep(_data_of(context, builder, rows, arguments[0]), [arguments[1]]), ir.IntType(8).as_pointer()
        )
        whole = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, whole, whole, whole])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(prefetch, [pointer, *(ir.Constant(whole, value) for value in (0, 3, 1))])  # data, to be read, near
        return context.get_dummy_value()

    return types.none(rows, types.int64), generate


# In compiled code: have row ``number`` of an array of one dimension and without gaps brought near the processor.
fetch: Callable[..., None] = intrinsic(_fetch)
