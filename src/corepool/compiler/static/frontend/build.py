"""Reads a quantised ONNX model node by node and builds the layer graph, listing everything that it cannot compile.

It must not know files or float models: it is handed a checked model that is quantised already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from corepool.compiler.static.frontend import ops_elementwise, ops_linear, ops_pool, ops_quant, ops_shape, tail
from corepool.compiler.static.frontend.context import Context, Node, OutOfRange, Unsupported
from corepool.compiler.static.frontend.fold import FOLDABLE, Folder
from corepool.compiler.static.frontend.nodes import in_order, read_nodes
from corepool.compiler.static.frontend.stand_ins import StandIns
from corepool.compiler.static.frontend.values import Bad, Codes, Const, Pointwise, QuantConst, RawCodes, RawInput, Value
from corepool.compiler.static.frontend.views import ViewError, input_form
from corepool.compiler.static.frontend.window import auto_pad
from corepool.compiler.static.graph import Graph, HostNode, Port
from corepool.compiler.static.hostops import HOST_OPS, STARTS
from corepool.errors import ModelError

Handler = Callable[[Context, Node], Value]

HANDLERS: Mapping[str, Handler] = {
    "QuantizeLinear": ops_quant.quantize_linear,
    "DequantizeLinear": ops_quant.dequantize_linear,
    "Conv": ops_linear.conv,
    "Gemm": ops_linear.gemm,
    "MatMul": ops_linear.matmul,
    "BatchNormalization": ops_linear.batch_normalization,
    "MaxPool": ops_pool.max_pool,
    "GlobalMaxPool": ops_pool.global_max_pool,
    "AveragePool": ops_pool.average_pool,
    "GlobalAveragePool": ops_pool.global_average_pool,
    "ReduceMean": ops_pool.reduce_mean,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum"), ops_elementwise.binary),
    **dict.fromkeys(ops_elementwise.UNARY, ops_elementwise.unary),
    "Clip": ops_elementwise.clip,
    "Concat": ops_shape.concat,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"), ops_shape.view),
    "Pad": ops_shape.pad,
    "Shape": ops_shape.shape,
    **dict.fromkeys(("Identity", "Dropout"), ops_shape.identity),
}

SUPPORTED = sorted({*HANDLERS, *STARTS})
# Operators to which the order of axes is all one, such as pictures' own go through on their way to the transpose.
_ANY_ORDER = ("QuantizeLinear", "DequantizeLinear", "Identity", "Add", "Sub", "Mul", "Div", "Clip", "Relu")


class Builder:
    """One import. ``build`` returns the layer graph or raises ModelError with all problems.

    A ``rehearsal`` takes a float model, to find what is wrong with it before it is quantised; its graph is of no use.
    """

    def __init__(self, model: onnx.ModelProto, rehearsal: bool = False) -> None:
        self.proto = model.graph
        opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
        graph = Graph(model.graph.name or "model", {}, [], [], [])
        self.context = Context(graph, rehearsal)
        self.rehearsal = rehearsal
        self.folder = Folder(opset)
        self.problems: list[str] = []
        self.guess = StandIns(self.context, model)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.input_names = [v.name for v in model.graph.input if v.name not in self.constants]
        self.nodes = in_order(read_nodes(model.graph), {*self.constants, *self.input_names})
        self.model = model
        self.checker = onnx.checker.C.CheckerContext()
        self.checker.ir_version = model.ir_version
        self.checker.opset_imports = {o.domain: o.version for o in model.opset_import}

    def build(self) -> Graph:
        ctx = self.context
        self._read_inputs()
        misplaced: list[str] = []
        host = tail.find(self.nodes, misplaced, HANDLERS.keys(), self.constants.keys())
        self.problems += misplaced
        on_host = {node.index for node in host}
        readers = Counter(name for node in self.nodes for name in {*node.inputs})
        readers.update(value.name for value in self.proto.output)
        for node in self.nodes:
            if node.index in on_host and not misplaced:
                continue
            if node.index in on_host and node.op in HOST_OPS:
                self.guess.outputs(node)
            else:
                self._lower(node)
            for name in {*node.inputs}:  # what nobody reads any more is let go: long chains make many tables
                readers[name] -= 1
                if not readers[name]:
                    ctx.values.pop(name, None)
        graph = ctx.graph
        self._outputs(host)
        if self.problems:
            if any(problem.endswith("operator not supported") for problem in self.problems):
                self.problems.append(f"supported operators are {', '.join(SUPPORTED)}")
            raise ModelError("; ".join(self.problems))
        order = {name: i for i, name in enumerate(self.input_names)}
        graph.inputs.sort(key=lambda port: order[port.name])
        self._name_layers()
        return graph

    def _name_layers(self) -> None:
        """Makes layer names unique: a node may have become several layers."""
        seen: set[str] = set()
        for i, layer in enumerate(self.context.graph.layers):
            name, count = layer.name, 0
            while name in seen:
                count += 1
                name = f"{layer.name}.{count}"
            seen.add(name)
            self.context.graph.layers[i] = replace(layer, name=name)

    def _read_inputs(self) -> None:
        ctx = self.context
        for value in self.proto.input:
            if value.name in self.constants:
                continue
            shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            try:
                form = input_form(shape, self._channels_last(value.name))
            except ViewError as error:
                self.problems.append(f"graph input '{value.name}' of shape {list(shape)}: {error}")
                ctx.values[value.name] = Bad()
                continue
            ctx.input_forms[value.name] = form
            kind = value.type.tensor_type.elem_type
            if kind == onnx.TensorProto.FLOAT:
                raw = RawInput(value.name, form)
                ctx.values[value.name] = ctx.finish(raw, value.name) if self.rehearsal else raw
            elif not self.rehearsal and kind in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8):
                ctx.values[value.name] = RawCodes(
                    value.name, form, "int8" if kind == onnx.TensorProto.INT8 else "uint8"
                )
            else:
                name = onnx.TensorProto.DataType.Name(kind)
                supported = "supported is FLOAT" if self.rehearsal else "supported are FLOAT, INT8, UINT8"
                self.problems.append(f"graph input '{value.name}' is {name}; {supported}")
                ctx.values[value.name] = Bad()

    def _channels_last(self, name: str) -> bool:
        """Whether an input is [1, H, W, C]: its first reader that minds is the transpose to [1, C, H, W]."""
        followed = {name}
        for node in self.nodes:
            if followed.isdisjoint(node.inputs):
                continue
            if node.op in _ANY_ORDER:
                followed.add(node.outputs[0])
            elif node.op == "Transpose":
                return list(node.get("perm", [])) in ([0, 3, 1, 2], [0, 2, 1])
        return False

    def _load(self, node: Node) -> bool:
        """Makes the node's constants available; False if an input is the result of a node with a problem."""
        for name in node.inputs:
            if name and name not in self.context.values:
                array = numpy_helper.to_array(self.constants[name])
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise Unsupported(f"its constant '{name}' holds NaN or infinity")
                self.context.values[name] = Const(array)
        return not any(isinstance(self.context.values[name], Bad) for name in node.inputs if name)

    def _lower(self, node: Node) -> None:
        ctx = self.context
        problem = None
        try:
            if self._load(node):
                made = self._handle(node)
                if self.rehearsal:
                    made = ctx.finish(made, node.outputs[0])
                for name in node.outputs:
                    if name:
                        ctx.values[name] = made
                return
            self._look_at(node)
        except OutOfRange as error:
            problem = None if self.rehearsal else str(error)
        except Unsupported as error:
            problem = str(error)
        except (ValueError, KeyError, IndexError, TypeError, ArithmeticError, MemoryError) as error:
            problem = str(error) if isinstance(error, ViewError) else f"malformed: {error}"
        if problem is not None and not self.guess.explains(node):
            self.problems.append(f"node '{node.name}' ({node.op}): {problem}")
        self.guess.outputs(node)

    def _look_at(self, node: Node) -> None:
        """What is wrong with a node by itself: not even the shape of what it reads is known."""
        if node.op not in HANDLERS:
            raise Unsupported("operator not supported")
        self._check(node)
        if node.op in ("Conv", "Gemm", "MatMul"):
            ops_linear.check_weights(self.context, node)
        if node.op in ("Conv", "MaxPool", "AveragePool"):
            auto_pad(node)
        if node.op == "Pad":
            ops_shape.check_mode(node)

    def _handle(self, node: Node) -> Value:
        ctx = self.context
        constant = all(isinstance(ctx.values[name], Const) for name in node.inputs if name)  # true of none
        if constant and node.op in FOLDABLE:
            ctx.note(node, "folded into a constant")
            return Const(self.folder.evaluate(node, [ctx.values[n] for n in node.inputs if n]))  # type: ignore[misc]
        handler = HANDLERS.get(node.op)
        if handler is None:
            raise Unsupported("operator not supported")
        self._check(node)
        return handler(ctx, node)

    def _check(self, node: Node) -> None:
        """What ONNX itself has to say about a node: unknown attributes, wrong types, missing inputs."""
        try:
            onnx.checker.check_node(self.proto.node[node.index], self.checker)
        except onnx.checker.ValidationError as error:
            raise Unsupported(str(error).strip().splitlines()[0]) from None

    def _outputs(self, host: list[Node]) -> None:
        """Ports for the graph's outputs and for what the host's part reads."""
        ctx, graph = self.context, self.context.graph
        made_by_host = {name for node in host for name in node.outputs}
        wanted = [v.name for v in self.proto.output if v.name not in made_by_host]
        edges = [n for node in host for n in node.inputs if n and n not in made_by_host and n not in self.constants]
        for name in dict.fromkeys([*wanted, *edges]):
            value = ctx.values.get(name)
            if value is None or isinstance(value, Bad):
                continue  # something is wrong before it, and said already
            if isinstance(value, (Const, QuantConst)):
                if name in wanted:
                    self.problems.append(f"graph output '{name}' is a constant")
            else:
                try:
                    graph.outputs.append(self._port(name, value))
                except ValueError as error:
                    self.problems.append(f"output '{name}': {error}")
        if host and not self.problems:
            graph.tail = tail.model(self.model, host, graph.outputs, ctx.values)
            read = {name for node in host for name in node.inputs}
            graph.tail_outputs = tuple(v.name for v in self.proto.output if v.name in made_by_host | read)
            for node in host:
                graph.host_nodes.append(HostNode(node.name, node.op, tail.reason(node, HANDLERS.keys())))

    def _port(self, name: str, value: Value) -> Port:
        ctx = self.context
        if isinstance(value, (RawInput, RawCodes)):
            raise Unsupported("it is a graph input")
        kind: Literal["float32", "int8", "uint8"] = "float32"
        if isinstance(value, Codes):
            tensor, form = value.tensor, value.form
            kind = value.dtype
        else:
            try:
                plain = ctx.plain_output(value, name)
            except Unsupported:
                raise Unsupported("it must pass QuantizeLinear and DequantizeLinear first: it has no scale") from None
            tensor, form = self._own(plain, name), plain.form
        if any(port.tensor == tensor for port in ctx.graph.inputs):
            t = ctx.graph.tensors[tensor]
            tensor = ctx.copy(tensor, ctx.tensor(f"{name}:copy", t.shape, t.scale, t.zero_point), ())
        return Port(name, tensor, form.shape, form.axes, kind)

    def _own(self, value: Pointwise, name: str) -> str:
        """A tensor whose own scale is the value's (they differ if Q and DQ name different scales)."""
        ctx = self.context
        assert value.affine is not None
        if ctx.affine(value.tensor) == value.affine:
            return value.tensor
        return ctx.copy(value.tensor, ctx.tensor(name, value.form.dims, *value.affine), value.nodes)
