"""tritonclient, unmodified, over both transports, with binary tensors and without."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

from corepool.runtime.session import Session

from .conftest import Service, bearer, image


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, service: Service) -> Iterator[tuple[Any, Any]]:
    """A client and its module."""
    module = {"http": over_http, "grpc": over_grpc}[request.param]
    with contextlib.closing(
        module.InferenceServerClient(getattr(service, {"http": "rest"}.get(request.param, "grpc")))
    ) as made:
        yield made, module


def expected(service: Service, tensor: np.ndarray) -> np.ndarray:
    """What the model gives when it is run without any server."""
    package = service.engine.loaded["alice", "small"]["2"].package
    with Session(type(service.engine.device)(service.engine.config), package, range(1)) as session:
        return session.run({"input": tensor}).outputs["t1"]


def plain(answer: Any) -> Any:
    """An answer as a client shows it: messages as dicts, with the names of the protocol."""
    if isinstance(answer, dict | list):
        return answer
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(answer, preserving_proto_field_name=True)


def test_server_and_model_are_described(client: tuple[Any, Any]) -> None:
    made, _ = client
    key = bearer("alice")
    assert made.is_server_live()
    assert made.is_server_ready()
    server = plain(made.get_server_metadata())
    assert server["name"] == "corepool"
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(server["extensions"])
    model = plain(made.get_model_metadata("small", headers=dict(key)))
    assert model["versions"] == ["1", "2"]
    assert [int(size) for size in model["inputs"][0]["shape"]] == [1, 3, 12, 12]
    assert (model["inputs"][0]["name"], model["inputs"][0]["datatype"]) == ("input", "INT8")
    assert made.is_model_ready("small", headers=dict(key))
    assert made.is_model_ready("small", "1", headers=dict(key))
    assert not made.is_model_ready("small", "9", headers=dict(key))
    config = plain(made.get_model_config("small", headers=dict(key)))
    config = config.get("config", config)
    assert config["input"][0]["data_type"] == "TYPE_INT8"
    assert [int(size) for size in config["output"][0]["dims"]] == [1, 5, 12, 12]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("version", ["", "1"])
def test_inference_is_that_of_the_device(service: Service, client: tuple[Any, Any], binary: bool, version: str) -> None:
    made, module = client
    tensor = image(3)
    if module is over_http:
        source = module.InferInput("input", [1, 3, 12, 12], "INT8")
        source.set_data_from_numpy(tensor, binary_data=binary)
        outputs = [module.InferRequestedOutput("t1", binary_data=binary)]
    else:
        source = module.InferInput("input", [1, 3, 12, 12], "INT8")
        source.set_data_from_numpy(tensor)
        outputs = None if binary else [module.InferRequestedOutput("t1")]
    result = made.infer(
        "small", [source], outputs=outputs, model_version=version, request_id="r7", headers=bearer("alice")
    )
    answer = plain(result.get_response())
    assert answer["id"] == "r7"
    assert answer["model_version"] == (version or "2")
    assert set(answer["parameters"]) == {"cycles", "device_us", "cores", "lease"}
    assert result.as_numpy("t1").tobytes() == expected(service, tensor).tobytes()
    if module is over_http:
        assert ("data" in answer["outputs"][0]) is not binary


def test_default_of_the_http_client_is_binary(service: Service) -> None:
    with contextlib.closing(over_http.InferenceServerClient(service.rest)) as made:
        source = over_http.InferInput("input", [1, 3, 12, 12], "INT8")
        source.set_data_from_numpy(image(4))
        result = made.infer("small", [source], headers=bearer("alice"))
        assert result.get_response()["outputs"][0]["parameters"]["binary_data_size"] == 5 * 12 * 12 * 4
        assert result.as_numpy("t1").tobytes() == expected(service, image(4)).tobytes()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_unpacked(service: Service, algorithm: str) -> None:
    with contextlib.closing(over_http.InferenceServerClient(service.rest)) as made:
        source = over_http.InferInput("input", [1, 3, 12, 12], "INT8")
        source.set_data_from_numpy(image(4))
        result = made.infer("small", [source], headers=bearer("alice"), request_compression_algorithm=algorithm)
        assert result.as_numpy("t1").tobytes() == expected(service, image(4)).tobytes()


def test_index_load_unload_and_statistics(client: tuple[Any, Any], service: Service) -> None:
    made, module = client
    key = bearer("alice")

    def rows() -> dict[tuple[str, str], str]:
        index = plain(made.get_model_repository_index(headers=dict(key)))
        index = index.get("models", []) if isinstance(index, dict) else index
        return {(row["name"], row["version"]): row["state"] for row in index}

    assert rows()["shared", "3"] == "UNAVAILABLE"
    assert rows()["small", "1"] == "READY"
    assert ("secret", "1") not in rows()
    made.load_model("shared", headers=dict(key))
    assert rows()["shared", "3"] == "READY"
    assert made.is_model_ready("shared", headers=dict(key))
    source = module.InferInput("input", [1, 3, 12, 12], "INT8")
    source.set_data_from_numpy(image())

    def counted() -> tuple[int, int]:
        told = plain(made.get_inference_statistics("shared", headers=dict(key)))["model_stats"][0]
        success = told.get("inference_stats", {}).get("success", {})
        return int(told.get("inference_count", 0)), int(success.get("ns", 0))

    count, spent = counted()
    for _ in range(3):
        made.infer("shared", [source], headers=dict(key))
    later = counted()
    assert later[0] == count + 3
    assert later[1] > spent
    everything = plain(made.get_inference_statistics(headers=dict(key)))["model_stats"]
    assert {row["name"] for row in everything} >= {"small", "shared"}
    made.unload_model("shared", headers=dict(key))
    assert rows()["shared", "3"] == "UNAVAILABLE"
    assert not made.is_model_ready("shared", headers=dict(key))


def test_a_model_is_sent_along_with_the_wish_to_load_it(
    client: tuple[Any, Any], service: Service, small_case: tuple[bytes, dict[str, np.ndarray]]
) -> None:
    """As Triton's clients do it: files and a configuration, in which settings of Triton's own may stand."""
    made, _ = client
    key = bearer("alice")
    model, _ = small_case
    name = f"sent-{type(made).__module__.split('.')[1]}"
    config = '{"backend": "onnxruntime", "max_batch_size": 0, "version_policy": {"latest": {"num_versions": 1}}}'
    made.load_model(name, headers=dict(key), config=config, files={"file:1/model.onnx": model})
    assert made.is_model_ready(name, headers=dict(key))
    with pytest.raises(InferenceServerException, match="colour"):
        made.load_model(name, headers=dict(key), config='{"colour": 1}')
    made.unload_model(name, headers=dict(key))
    with pytest.raises(InferenceServerException, match=f"'{name}' is not loaded"):
        made.infer(name, [], headers=dict(key))


def test_errors_reach_the_client_as_texts(client: tuple[Any, Any]) -> None:
    made, module = client
    source = module.InferInput("input", [1, 3, 12, 11], "INT8")
    source.set_data_from_numpy(np.zeros((1, 3, 12, 11), np.int8))
    with pytest.raises(InferenceServerException, match=r"instead of INT8 \[1, 3, 12, 12\]"):
        made.infer("small", [source], headers=bearer("alice"))
    with pytest.raises(InferenceServerException, match="there is no model"):
        made.infer("nothing", [source], headers=bearer("alice"))
    with pytest.raises(InferenceServerException, match="API key"):
        made.infer("small", [source])


def test_streams_answer_in_order_and_tell_errors_in_place(service: Service) -> None:
    import queue

    got: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with contextlib.closing(over_grpc.InferenceServerClient(service.grpc)) as made:
        made.start_stream(lambda result, error: got.put((result, error)), headers=bearer("alice"))
        for name, shape in (("a", 12), ("b", 11), ("c", 12)):
            source = over_grpc.InferInput("input", [1, 3, 12, shape], "INT8")
            source.set_data_from_numpy(np.zeros((1, 3, 12, shape), np.int8))
            made.async_stream_infer("small", [source], request_id=name)
        answers = [got.get(timeout=30) for _ in range(3)]
        made.stop_stream()
    assert [None if result is None else result.get_response().id for result, _ in answers] == ["a", None, "c"]
    assert "instead of INT8" in str(answers[1][1])
