"""Values in place of those that nodes with problems would have made, so that what follows is looked at too.

It must not know what the problems are; graphs with stand-ins are thrown away.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import onnx

from corepool.compiler.static.frontend.context import Context, Node, Unsupported
from corepool.compiler.static.frontend.shapes import infer_shapes
from corepool.compiler.static.frontend.values import Bad, Codes, Const, QuantConst, Value
from corepool.compiler.static.frontend.views import Form, ViewError, input_form
from corepool.errors import ModelError


class StandIns:
    """Makes stand-ins of the right shape where ONNX can tell it, and else ``Bad``."""

    def __init__(self, ctx: Context, model: onnx.ModelProto) -> None:
        self.ctx = ctx
        self.model = model

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the float values; inferred only when something is wrong."""
        try:
            return infer_shapes(self.model, onnx.TensorProto.FLOAT)
        except ModelError:
            return {}

    def explains(self, node: Node) -> bool:
        """Whether a node may well have a problem only because it reads the codes of one with a problem."""
        value = self.ctx.values.get(node.inputs[0]) if node.inputs else None
        return isinstance(value, Codes) and value.tensor in self.ctx.stand_ins

    def outputs(self, node: Node) -> None:
        """Gives the node's outputs their values."""
        for name in node.outputs:
            if name:
                self.ctx.values[name] = self._value(node, name)

    def _value(self, node: Node, name: str) -> Value:
        sources = [self.ctx.values.get(source) for source in node.inputs if source]
        first = sources[0] if sources else None
        if isinstance(first, Const) and node.op == "DequantizeLinear":
            codes = np.zeros(first.array.shape, np.int8)
            return QuantConst(codes, np.ones((), np.float32), np.zeros((), np.int64), 0)
        if isinstance(first, Const) and node.op == "QuantizeLinear":
            return Const(np.zeros(first.array.shape, np.int8))
        if all(isinstance(source, (Const, QuantConst)) for source in sources):
            return Bad()
        try:
            form = self._form(node, name, getattr(first, "form", None))
            tensor = self.ctx.tensor(name, form.dims, 1.0, 0)
        except (ViewError, Unsupported, KeyError):
            return Bad()
        self.ctx.stand_ins.add(tensor)
        if node.op == "QuantizeLinear":
            zero = sources[2] if len(sources) > 2 else None
            signed = isinstance(zero, Const) and zero.array.dtype == np.int8
            return Codes(tensor, form, "int8" if signed else "uint8")
        return self.ctx.view(tensor, form)

    def _form(self, node: Node, name: str, source: Form | None) -> Form:
        if node.op in ("QuantizeLinear", "DequantizeLinear") and source is not None:
            return source
        shape = self._shapes[name]
        return source if source is not None and source.shape == shape else input_form(shape, channels_last=False)
