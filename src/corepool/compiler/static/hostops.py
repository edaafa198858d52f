"""Which operators the host may run before and after the device: cheap ones, whose work grows with their operands only.

It must not know graphs. Convolutions and matrix products are not among them: they belong on the cores, and a network
that needs them on both sides of an operator which the cores lack has that operator in its middle.
"""

from __future__ import annotations

# Ends of networks: real arithmetic that no table of 256 entries stands for.
STARTS = ("Softmax", "LogSoftmax", "ArgMax")

_UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp"),
    *("Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not"),
    *("Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
    *("Sqrt", "Tan", "Tanh", "ThresholdedRelu", "Clip"),
)
_BINARY = (
    *("Add", "Sub", "Mul", "Div", "Mod", "Pow", "PRelu", "Max", "Min", "Mean", "Sum", "And", "Or", "Xor", "Equal"),
    *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where"),
)
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare", "ArgMin", "CumSum", "GlobalAveragePool", "GlobalMaxPool", "Hardmax", "TopK"),
)
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "LRN")
_MOVES = (
    *("Cast", "Concat", "DepthToSpace", "Expand", "Gather", "Pad", "Resize", "Slice", "SpaceToDepth", "Split", "Tile"),
    *("Constant", "ConstantOfShape", "Range", "Shape", "Size"),
)
# What may stand behind anything: none of these makes more values than it reads.
PLAIN = ("QuantizeLinear", "DequantizeLinear", "Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
         "Cast", "Transpose", "TopK", *STARTS)  # fmt: skip

HOST_OPS = frozenset({*PLAIN, *_UNARY, *_BINARY, *_REDUCTIONS, *_NORMS, *_MOVES})

# Operators that divide: by a whole number that is zero the processor stops the process, so only reals may be divided.
DIVIDING = ("Div", "Mod")
