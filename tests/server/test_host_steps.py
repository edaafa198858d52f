"""A network whose first and last steps the host computes, uploaded to a server and asked by a client of every kind."""

from pathlib import Path

import httpx
import numpy as np
import tritonclient.http as over_http

from corepool.compiler.static.ort import onnxruntime
from support.camera import photos, picture_model

from .test_process import compiled, metrics_of, server, tenant


def test_first_and_last_steps_are_served_and_metered_apart(tmp_path: Path) -> None:
    path = picture_model(tmp_path / "camera.onnx")
    np.savez(tmp_path / "calibration.npz", photo=photos(24))
    with server(tmp_path) as (_, url, admin):
        headers = tenant(url, admin)
        place = f"{url}/v2/corepool/models/camera/versions/1"
        calibration = (tmp_path / "calibration.npz").read_bytes()
        assert httpx.put(f"{place}/calibration", content=calibration, headers=headers).status_code == 200
        compiled(url, headers, httpx.put(f"{place}/model", content=path.read_bytes(), headers=headers, timeout=60))
        about = httpx.get(f"{url}/v2/models/camera", headers=headers).json()
        assert about["inputs"] == [{"name": "photo", "datatype": "UINT8", "shape": [1, 24, 20, 3]}]
        assert about["outputs"] == [{"name": "p", "datatype": "FP32", "shape": [1, 6]}]
        client = over_http.InferenceServerClient(url.removeprefix("http://"), network_timeout=300)
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        for photo in photos(4, seed=3)[:, None]:
            tensor = over_http.InferInput("photo", [1, 24, 20, 3], "UINT8")
            tensor.set_data_from_numpy(photo)
            answer = client.infer("camera", [tensor], headers=dict(headers))
            assert np.abs(answer.as_numpy("p") - session.run(["p"], {"photo": photo})[0]).max() < 0.03
        client.close()
        spent = metrics_of(tmp_path, "corepool_inference_duration_seconds_sum", model="camera")
        assert 0 < spent["host"] < 0.1
        assert spent["compute"] > 0
        wrong = httpx.post(
            f"{url}/v2/models/camera/infer",
            json={"inputs": [{"name": "photo", "datatype": "FP32", "shape": [1, 24, 20, 3], "data": [0.0] * 1440}]},
            headers=headers,
        )
        assert wrong.status_code == 400
        assert "UINT8 [1, 24, 20, 3]" in wrong.json()["error"]
