"""The message table against the descriptors that tritonclient brings: the official protocol and Triton's additions."""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from corepool.server.rpc.messages import CALLS, DATA_TYPES, MESSAGES, SERVICE, STREAMS, TABLE

# Of these only some fields are there: what reads them ignores what is absent.
PARTIAL = {"ModelConfig", "ModelInput", "ModelOutput", "ModelVersionPolicy", "InferStatistics", "ModelStatistics"}


def official(name: str) -> Any:
    """The other side's descriptor of a message."""
    outer, *inner = name.split(".")
    for module in (service_pb2, model_config_pb2):
        if outer in module.DESCRIPTOR.message_types_by_name:
            found = module.DESCRIPTOR.message_types_by_name[outer]
            for each in inner:
                found = found.nested_types_by_name[each]
            return found
    raise AssertionError(f"the client knows no {name}")


def fields(descriptor: Any) -> dict[str, tuple[Any, ...]]:
    """What decides about bytes on the wire, by field."""
    proto = descriptor_pb2.DescriptorProto()
    descriptor.CopyToProto(proto)
    choices = [each.name for each in proto.oneof_decl]
    return {
        each.name: (
            each.number,
            each.label,
            each.type,
            each.type_name,
            choices[each.oneof_index] if each.HasField("oneof_index") else None,
        )
        for each in proto.field
    }


@pytest.mark.parametrize("name", TABLE)
def test_fields_are_the_official_ones(name: str) -> None:
    ours, theirs = fields(MESSAGES[name].DESCRIPTOR), fields(official(name))
    if name in PARTIAL:
        assert ours
        assert ours.items() <= theirs.items()
    else:
        assert ours == theirs
    assert MESSAGES[name].DESCRIPTOR.full_name == official(name).full_name


def test_calls_are_the_official_ones() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    known = {each.name: each for each in service.methods}
    for name, (asks, answers) in CALLS.items():
        assert (known[name].input_type.name, known[name].output_type.name) == (asks, answers)
        assert (known[name].client_streaming, known[name].server_streaming) == ((name in STREAMS),) * 2
    # What is left out has to do with memory that client and server share, and with the server's own settings.
    assert {name for name in known if name not in CALLS and "SharedMemory" not in name} == {
        "TraceSetting",
        "LogSettings",
    }


def test_data_types_are_the_official_ones() -> None:
    values = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values
    assert [(each.name, each.number) for each in values] == [(name, n) for n, name in enumerate(DATA_TYPES)]


def test_messages_pass_between_both_sides_byte_by_byte() -> None:
    request = service_pb2.ModelInferRequest(model_name="m", model_version="2", id="é")
    request.parameters["priority"].uint64_param = 1 << 63
    request.parameters["half"].double_param = 0.5
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, -2])
    tensor.contents.fp32_contents.extend([1.5, -2.5])
    request.outputs.add(name="y").parameters["binary_data"].bool_param = False
    request.raw_input_contents.append(b"\x00\xff")
    data = request.SerializeToString(deterministic=True)
    ours = MESSAGES["ModelInferRequest"].FromString(data)
    assert ours.SerializeToString(deterministic=True) == data
    assert str(ours) == str(request)
