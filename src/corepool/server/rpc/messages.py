"""The protocol's messages: a table of fields, turned into message classes in a pool of their own when loaded.

It must not know services or what messages mean. Generated stubs are no way: those of a client library in the same
process would clash with ours, as both would register the same names in protobuf's common pool.

Each line of the table is ``name number type``, with ``*`` after the type of repeated fields, ``map`` before the type of
maps from texts to messages, and ``/one`` behind members of a one-of. Types with capitals are messages or enumerations.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

PACKAGE = "inference"

# A message inside another one follows it, with a dot in its name.
TABLE = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live 1 bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready 1 bool",
    "ModelReadyRequest": "name 1 string, version 2 string",
    "ModelReadyResponse": "ready 1 bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name 1 string, version 2 string, extensions 3 string*",
    "ModelMetadataRequest": "name 1 string, version 2 string",
    "ModelMetadataResponse": "name 1 string, versions 2 string*, platform 3 string,"
    " inputs 4 ModelMetadataResponse.TensorMetadata*, outputs 5 ModelMetadataResponse.TensorMetadata*",
    "ModelMetadataResponse.TensorMetadata": "name 1 string, datatype 2 string, shape 3 int64*",
    "InferParameter": "bool_param 1 bool/parameter_choice, int64_param 2 int64/parameter_choice,"
    " string_param 3 string/parameter_choice, double_param 4 double/parameter_choice,"
    " uint64_param 5 uint64/parameter_choice",
    "InferTensorContents": "bool_contents 1 bool*, int_contents 2 int32*, int64_contents 3 int64*,"
    " uint_contents 4 uint32*, uint64_contents 5 uint64*, fp32_contents 6 float*, fp64_contents 7 double*,"
    " bytes_contents 8 bytes*",
    "ModelInferRequest": "model_name 1 string, model_version 2 string, id 3 string, parameters 4 map InferParameter,"
    " inputs 5 ModelInferRequest.InferInputTensor*, outputs 6 ModelInferRequest.InferRequestedOutputTensor*,"
    " raw_input_contents 7 bytes*",
    "ModelInferRequest.InferInputTensor": "name 1 string, datatype 2 string, shape 3 int64*,"
    " parameters 4 map InferParameter, contents 5 InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": "name 1 string, parameters 2 map InferParameter",
    "ModelInferResponse": "model_name 1 string, model_version 2 string, id 3 string, parameters 4 map InferParameter,"
    " outputs 5 ModelInferResponse.InferOutputTensor*, raw_output_contents 6 bytes*",
    "ModelInferResponse.InferOutputTensor": "name 1 string, datatype 2 string, shape 3 int64*,"
    " parameters 4 map InferParameter, contents 5 InferTensorContents",
    "ModelStreamInferResponse": "error_message 1 string, infer_response 2 ModelInferResponse",
    "ModelRepositoryParameter": "bool_param 1 bool/parameter_choice, int64_param 2 int64/parameter_choice,"
    " string_param 3 string/parameter_choice, bytes_param 4 bytes/parameter_choice",
    "RepositoryIndexRequest": "repository_name 1 string, ready 2 bool",
    "RepositoryIndexResponse": "models 1 RepositoryIndexResponse.ModelIndex*",
    "RepositoryIndexResponse.ModelIndex": "name 1 string, version 2 string, state 3 string, reason 4 string",
    "RepositoryModelLoadRequest": "repository_name 1 string, model_name 2 string,"
    " parameters 3 map ModelRepositoryParameter",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "repository_name 1 string, model_name 2 string,"
    " parameters 3 map ModelRepositoryParameter",
    "RepositoryModelUnloadResponse": "",
    "ModelConfigRequest": "name 1 string, version 2 string",
    "ModelConfigResponse": "config 1 ModelConfig",
    # Of configurations only what is used here: whoever reads them ignores what is absent.
    "ModelConfig": "name 1 string, platform 2 string, version_policy 3 ModelVersionPolicy, max_batch_size 4 int32,"
    " input 5 ModelInput*, output 6 ModelOutput*, backend 17 string",
    "ModelInput": "name 1 string, data_type 2 DataType, dims 4 int64*",
    "ModelOutput": "name 1 string, data_type 2 DataType, dims 3 int64*",
    "ModelVersionPolicy": "specific 3 ModelVersionPolicy.Specific/policy_choice",
    "ModelVersionPolicy.Specific": "versions 1 int64*",
    "ModelStatisticsRequest": "name 1 string, version 2 string",
    "ModelStatisticsResponse": "model_stats 1 ModelStatistics*",
    "ModelStatistics": "name 1 string, version 2 string, last_inference 3 uint64, inference_count 4 uint64,"
    " execution_count 5 uint64, inference_stats 6 InferStatistics",
    "InferStatistics": "success 1 StatisticDuration, fail 2 StatisticDuration, queue 3 StatisticDuration,"
    " compute_input 4 StatisticDuration, compute_infer 5 StatisticDuration, compute_output 6 StatisticDuration",
    "StatisticDuration": "count 1 uint64, ns 2 uint64",
}

DATA_TYPES = (
    *("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8"),
    *("TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16"),
)

# Calls: name, request, answer; streams on both sides where it says so.
CALLS = {
    "ServerLive": ("ServerLiveRequest", "ServerLiveResponse"),
    "ServerReady": ("ServerReadyRequest", "ServerReadyResponse"),
    "ModelReady": ("ModelReadyRequest", "ModelReadyResponse"),
    "ServerMetadata": ("ServerMetadataRequest", "ServerMetadataResponse"),
    "ModelMetadata": ("ModelMetadataRequest", "ModelMetadataResponse"),
    "ModelInfer": ("ModelInferRequest", "ModelInferResponse"),
    "ModelStreamInfer": ("ModelInferRequest", "ModelStreamInferResponse"),
    "ModelConfig": ("ModelConfigRequest", "ModelConfigResponse"),
    "ModelStatistics": ("ModelStatisticsRequest", "ModelStatisticsResponse"),
    "RepositoryIndex": ("RepositoryIndexRequest", "RepositoryIndexResponse"),
    "RepositoryModelLoad": ("RepositoryModelLoadRequest", "RepositoryModelLoadResponse"),
    "RepositoryModelUnload": ("RepositoryModelUnloadRequest", "RepositoryModelUnloadResponse"),
}
SERVICE = f"{PACKAGE}.GRPCInferenceService"
STREAMS = ("ModelStreamInfer",)

_Field = descriptor_pb2.FieldDescriptorProto


def file_description() -> descriptor_pb2.FileDescriptorProto:
    """The table as protobuf's own description of a file."""
    file = descriptor_pb2.FileDescriptorProto(name="corepool/inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name, fields in TABLE.items():
        outer, _, inner = name.rpartition(".")
        made[name] = made[outer].nested_type.add() if outer else file.message_type.add()
        made[name].name = inner
        for line in filter(None, fields.split(", ")):
            _add_field(made[name], name, line)
    types = file.enum_type.add(name="DataType")
    for number, name in enumerate(DATA_TYPES):
        types.value.add(name=name, number=number)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, owner: str, line: str) -> None:
    name, number, *kind = line.split()
    text, _, choice = kind[-1].partition("/")
    repeated = text.endswith("*") or kind[0] == "map"
    text = text.removesuffix("*")
    field = message.field.add(name=name, number=int(number))
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    if choice:
        names = [each.name for each in message.oneof_decl]
        if choice not in names:
            message.oneof_decl.add(name=choice)
            names.append(choice)
        field.oneof_index = names.index(choice)
    if kind[0] == "map":
        text = f"{owner}.{_add_entry(message, name, text)}"
    if text[0].islower():
        field.type = _Field.Type.Value(f"TYPE_{text.upper()}")
    else:
        field.type = _Field.TYPE_ENUM if text == "DataType" else _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{text}"


def _add_entry(message: descriptor_pb2.DescriptorProto, field: str, value: str) -> str:
    """The message that stands for one entry of a map; its name is fixed by protobuf's rules."""
    entry = message.nested_type.add(name=f"{field.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
    entry.field.add(
        name="value",
        number=2,
        label=_Field.LABEL_OPTIONAL,
        type=_Field.TYPE_MESSAGE,
        type_name=f".{PACKAGE}.{value}",
    )
    return str(entry.name)


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file_description())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in TABLE}


MESSAGES: dict[str, Any] = _classes()
