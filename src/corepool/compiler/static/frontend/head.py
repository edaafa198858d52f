"""The beginning of a network that runs on the host: operators that the cores lack, and what stands before them.

It must not know layers or quantisation: it cuts an ONNX model in two, and joins the two again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from corepool.compiler.static.frontend.calibration import FloatArray, input_shapes
from corepool.compiler.static.frontend.context import Node
from corepool.compiler.static.frontend.nodes import in_order, read_nodes
from corepool.compiler.static.frontend.region import Region
from corepool.compiler.static.frontend.shapes import infer_shapes
from corepool.compiler.static.graph import HostInput, HostNode
from corepool.compiler.static.hostops import HOST_OPS
from corepool.compiler.static.hostpart import check_part
from corepool.errors import CalibrationError, first_line

_EDGES = (TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8)  # what device inputs may be
_USERS = (
    "float32",
    "float64",
    "float16",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


@dataclass(frozen=True)
class Head:
    """``model`` makes inputs of the rest from ``inputs``; those in ``passed`` are inputs of the rest as they are."""

    model: onnx.ModelProto
    inputs: tuple[HostInput, ...]
    passed: frozenset[str]
    nodes: tuple[HostNode, ...]

    def run(self, samples: Sequence[Mapping[str, FloatArray]]) -> list[dict[str, FloatArray]]:
        """Samples of the rest's inputs, for samples of the network's. Raises CalibrationError."""
        from corepool.compiler.static.ort import onnxruntime

        session = onnxruntime.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])
        kinds = {each.name: np.dtype(each.dtype) for each in self.inputs}
        read = {value.name for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        made = []
        for sample in samples:
            try:
                values = session.run(names, {n: a.astype(kinds[n]) for n, a in sample.items() if n in read})
            except Exception as error:  # its exceptions have no common base below this
                raise CalibrationError(
                    f"the network's first steps cannot take the calibration data: {first_line(error)}"
                ) from None
            one = {name: np.asarray(value, np.float32) for name, value in zip(names, values, strict=True)}
            if not all(np.isfinite(array).all() for array in one.values()):
                raise CalibrationError("the network's first steps make NaN or infinity of the calibration data")
            made.append({**{name: array for name, array in sample.items() if name in self.passed}, **one})
        return made

    def pixels(self) -> frozenset[str]:
        """Inputs that are bytes: pictures are given to them as they are."""
        return frozenset(each.name for each in self.inputs if each.dtype == "uint8")

    def join(self, rest: onnx.ModelProto) -> onnx.ModelProto:
        """The whole network again, the rest as it is now."""
        whole = onnx.ModelProto()
        whole.CopyFrom(rest)
        graph, made = whole.graph, {value.name for value in self.model.graph.output}
        inputs = {value.name: value for value in [*self.model.graph.input, *rest.graph.input] if value.name not in made}
        del graph.input[:], graph.node[:], graph.value_info[:]
        graph.input.extend(inputs[each.name] for each in self.inputs)
        graph.node.extend([*self.model.graph.node, *rest.graph.node])
        known = {tensor.name for tensor in graph.initializer}
        graph.initializer.extend(tensor for tensor in self.model.graph.initializer if tensor.name not in known)
        return whole


def cut(model: onnx.ModelProto, supported: Set[str], quantised: bool) -> tuple[onnx.ModelProto, Head | None]:
    """The model without its first nodes, and these: operators that are not ``supported`` and all that stands before
    them, if that is cheap; in a ``quantised`` model also what follows up to QuantizeLinear, as the cores take nothing
    without a scale. The model as it is and None if there are none such. Raises ModelError for first steps that are too
    large."""
    constants = {tensor.name for tensor in model.graph.initializer}
    given = [value.name for value in model.graph.input if value.name not in constants]
    nodes = in_order(read_nodes(model.graph), {*constants, *given})
    region = Region(nodes, supported, constants)
    chosen = _chosen(nodes, region)
    if not chosen:
        return model, None
    if quantised:
        _follow(nodes, region, chosen)
    first = [node for node in nodes if node.index in chosen]
    rest = [node for node in nodes if node.index not in chosen]
    edges = _edges(model, first, rest)
    if edges is None:
        return model, None
    users = _users(model, given)
    if users is None:
        return model, None
    head = Head(
        _part(model, first, [value for value in model.graph.input if value.name in given], edges),
        users,
        frozenset(given) & {name for node in rest for name in node.inputs},
        tuple(HostNode(node.name, node.op, _reason(node, supported)) for node in first),
    )
    check_part(head.model.SerializeToString(), "before the first")
    inputs = [value for value in model.graph.input if value.name in head.passed]
    return _part(model, rest, [*inputs, *edges], list(model.graph.output)), head


def _chosen(nodes: list[Node], region: Region) -> set[int]:
    """Indices of the nodes that run on the host first: closed under what they read, constants included."""
    makers = {name: node for node in nodes for name in node.outputs if name}
    chosen: set[int] = set()
    for seed in nodes:
        if not region.begins_with(seed):
            continue
        found: dict[int, Node] = {}
        waiting = [seed]
        while waiting:
            node = waiting.pop()
            if node.index not in found:
                found[node.index] = node
                waiting += [makers[name] for name in node.inputs if name in makers]
        if all(node.op in HOST_OPS for node in found.values()):
            chosen |= set(found)
    return chosen


def _follow(nodes: list[Node], region: Region, chosen: set[int]) -> None:
    """Adds cheap nodes that read nothing but what the chosen ones make, and constants, up to QuantizeLinear."""
    made = {name for node in nodes if node.index in chosen for name in node.outputs if name}
    for node in nodes:
        read = {name for name in node.inputs if name}
        if node.index in chosen or node.op == "QuantizeLinear" or node.op not in HOST_OPS or not read & made:
            continue
        if all(name in made or name in region.given_constants for name in read):
            chosen.add(node.index)
            made.update(name for name in node.outputs if name)


def _edges(model: onnx.ModelProto, first: list[Node], rest: list[Node]) -> list[onnx.ValueInfoProto] | None:
    """What the rest reads of the first nodes; None if devices could not take it."""
    made = {name for node in first for name in node.outputs if name}
    if made & {value.name for value in model.graph.output}:
        return None
    wanted = list(dict.fromkeys(name for node in rest for name in node.inputs if name in made))
    kinds = {kind: infer_shapes(model, kind) for kind in _EDGES}
    edges = []
    for name in wanted:
        kind = next((kind for kind, shapes in kinds.items() if name in shapes), None)
        if kind is None:
            return None
        edges.append(helper.make_tensor_value_info(name, kind, kinds[kind][name]))
    return edges


def _users(model: onnx.ModelProto, given: list[str]) -> tuple[HostInput, ...] | None:
    shapes = input_shapes(model)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    try:
        made = [HostInput(name, str(helper.tensor_dtype_to_np_dtype(kinds[name])), shapes[name]) for name in given]
    except (KeyError, ValueError, TypeError):
        return None
    return tuple(made) if all(each.dtype in _USERS for each in made) else None


def _part(
    model: onnx.ModelProto,
    nodes: list[Node],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of some nodes, in this order and with these names."""
    protos = []
    for node in nodes:
        proto = onnx.NodeProto()
        proto.CopyFrom(model.graph.node[node.index])
        proto.name = node.name
        protos.append(proto)
    read = {name for node in nodes for name in node.inputs}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    used = [value for value in inputs if value.name in read]
    built: onnx.ModelProto = helper.make_model(
        helper.make_graph(protos, model.graph.name or "model", used, outputs, constants)
    )
    built.ir_version = model.ir_version
    del built.opset_import[:]
    built.opset_import.extend(model.opset_import)
    return built


def _reason(node: Node, supported: Set[str]) -> str:
    if node.op not in supported:
        return "is no operator of the cores; stands at the beginning"
    return "stands before an operator that runs on the host"
