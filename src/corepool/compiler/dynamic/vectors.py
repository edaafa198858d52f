"""Two words for compiled code (@hot) that numba lacks: eight regions compared at once, and memory fetched ahead of use.

It must not know what regions are of, or what is fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from corepool.compiler.dynamic.rows import BANKS

_WORD = ir.IntType(64)
_LANES = ir.VectorType(ir.IntType(32), BANKS)


def _data(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value).data


def _spread(builder: Any, value: Any) -> Any:
    """A number of 64 bits in all lanes."""
    undefined = ir.Constant(_LANES, ir.Undefined)
    alone = builder.insert_element(
        undefined, builder.trunc(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 0)
    )  # fmt: skip
    return builder.shuffle_vector(alone, undefined, ir.Constant(_LANES, [0] * BANKS))


def _meet(
    typing_context: Any, reach: Any, number: Any, row: Any, row_end: Any, block: Any, block_end: Any
) -> Any:  # fmt: skip
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base = _data(context, builder, reach, arguments[0])
        first = builder.mul(arguments[1], ir.Constant(_WORD, 4 * BANKS))
        row_v, row_end_v, block_v, block_end_v = (
            builder.load(
                builder.bitcast(
                    builder.gep(base, [builder.add(first, ir.Constant(_WORD, i * BANKS))]), _LANES.as_pointer()
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
        bits = [builder.zext(builder.bitcast(each, ir.IntType(BANKS)), _WORD) for each in (hit, rows, held)]
        shifted = [builder.shl(each, ir.Constant(_WORD, i * BANKS)) for i, each in enumerate(bits)]
        return builder.or_(shifted[0], builder.or_(shifted[1], shifted[2]))

    return types.int64(reach, *[types.int64] * 5), generate


# In compiled code: how a region meets the BANKS regions ``reach[number]`` (see ``rows.State``), a bit for each: those
# that hold something of it, from bit BANKS on those that hold all its rows as well, and from bit 2 * BANKS on those that
# hold all of it. Nothing is checked; ``reach`` has no gaps.
meet: Callable[..., int] = intrinsic(_meet)


def _fetch(typing_context: Any, rows: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.bitcast(
            builder.gep(_data(context, builder, rows, arguments[0]), [arguments[1]]), ir.IntType(8).as_pointer()
        )
        whole = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, whole, whole, whole])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(prefetch, [pointer, *(ir.Constant(whole, value) for value in (0, 3, 1))])  # data, to be read, near
        return context.get_dummy_value()

    return types.none(rows, types.int64), generate


# In compiled code: have row ``number`` of an array of one dimension and without gaps brought near the processor.
fetch: Callable[..., None] = intrinsic(_fetch)
