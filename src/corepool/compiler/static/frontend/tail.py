"""The end of a network that runs on the host: Softmax and ArgMax, operators that the cores lack, and what follows them.

It must not know layers: it cuts the ONNX graph in two.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import onnx
from onnx import helper, numpy_helper

from corepool.compiler.static.frontend.context import Node
from corepool.compiler.static.frontend.region import Region
from corepool.compiler.static.frontend.values import Const, Value
from corepool.compiler.static.graph import Port
from corepool.compiler.static.hostops import HOST_OPS, STARTS

_TYPES = {"float32": onnx.TensorProto.FLOAT, "int8": onnx.TensorProto.INT8, "uint8": onnx.TensorProto.UINT8}


def find(nodes: list[Node], problems: list[str], supported: Set[str], known: Set[str]) -> list[Node]:
    """The nodes that run on the host: each Softmax or ArgMax and all that depends on it, and each operator that is not
    ``supported`` if only cheap ones depend on it and the device has something to do before it. ``known``: names of
    constants. Adds to ``problems``."""
    region = Region(nodes, supported, known)
    tainted: dict[str, Node] = {}
    host = []
    for node in nodes:
        source = next((tainted[name] for name in node.inputs if name in tainted), None)
        if source is None and (node.op in STARTS or region.ends_with(node)):
            source = node
        if source is None:
            continue
        if node.op not in HOST_OPS:
            problems.append(
                f"node '{source.name}' ({source.op}) feeds node '{node.name}' ({node.op}): {source.op} runs on the host"
                " and so must stand at the end"
            )
        host.append(node)
        for name in node.outputs:
            tainted[name] = source
    return host


def reason(node: Node, supported: Set[str]) -> str:
    """Why a node runs on the host, in words for the report."""
    if node.op in STARTS:
        return "needs real arithmetic that the cores lack; runs once, at the end"
    if node.op not in supported:
        return "is no operator of the cores; stands at the end"
    return "follows an operator that runs on the host"


def model(source: onnx.ModelProto, host: list[Node], ports: list[Port], values: Mapping[str, Value]) -> bytes:
    """An ONNX model (bytes) of the host's nodes, fed with the output ports."""
    graph = source.graph
    protos = [graph.node[node.index] for node in host]
    made = {name for p in protos for name in p.output}
    read = {name for p in protos for name in p.input if name} - made
    inputs = [helper.make_tensor_value_info(p.name, _TYPES[p.dtype], p.shape) for p in ports if p.name in read]
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    known = {tensor.name for tensor in constants}
    for name in sorted(read - known):
        value = values.get(name)
        if isinstance(value, Const):
            constants.append(numpy_helper.from_array(value.array, name))
    outputs = [value for value in graph.output if value.name in made | read]  # what it reads may be an output too
    built = helper.make_model(helper.make_graph(protos, "host", inputs, outputs, constants))
    built.ir_version = min(source.ir_version, built.ir_version)
    del built.opset_import[:]
    built.opset_import.extend(source.opset_import)
    return bytes(built.SerializeToString())
