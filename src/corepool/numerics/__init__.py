"""What each operation of the machine computes, bit-exactly; compiler, simulator and tests share this definition.

It must not know layer graphs, instructions or ONNX.
"""

from corepool.numerics.affine import all_values, dequantise, quantise, to_int8_domain, to_uint8
from corepool.numerics.fixed_point import fixed_point, fixed_point_pair, fixed_points
from corepool.numerics.layout import from_map, pack_fold, to_map
from corepool.numerics.operations import (
    add,
    conv2d,
    lut,
    mul,
    out_size,
    pad,
    pool_max,
    pool_sum,
    requantise,
    window_counts,
    windows,
)

__all__ = [
    "add",
    "all_values",
    "conv2d",
    "dequantise",
    "fixed_point",
    "fixed_point_pair",
    "fixed_points",
    "from_map",
    "lut",
    "mul",
    "out_size",
    "pack_fold",
    "pad",
    "pool_max",
    "pool_sum",
    "quantise",
    "requantise",
    "to_int8_domain",
    "to_map",
    "to_uint8",
    "window_counts",
    "windows",
]
