"""The server as a process: start, stop, ports, memory, what is loaded."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from corepool.config import preset
from support.toy_engine import toy_package

START_S = 120


@contextmanager
def server(
    folder: Path, *flags: str, before: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A running server: its process, URL, and the operators' key. ``before``: a command that starts it."""
    command = [
        *before,
        *(sys.executable, "-m", "corepool", "serve", "--state-dir", str(folder / "state"), "--config", "tiny"),
        *("--rest-port", "0", "--grpc-port", "0", "--metrics-port", "0", *flags),
    ]
    around = {**os.environ, **(environment or {})}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=around)
    try:
        assert process.stdout is not None
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, (folder / "log").read_text()
            found = re.search(r"REST (http://127\.0\.0\.1:\d+)", line)
        yield process, found[1], (folder / "state" / "admin.key").read_text().strip()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def tenant(url: str, admin: str, name: str = "t") -> dict[str, str]:
    """Add a tenant; returns the headers of its requests."""
    operator = {"authorization": f"Bearer {admin}"}
    added = httpx.post(f"{url}/v2/corepool/tenants", json={"name": name, "quota_cores": 4}, headers=operator)
    return {"authorization": f"Bearer {added.json()['key']}"}


def compiled(url: str, headers: dict[str, str], made: httpx.Response) -> None:
    """Wait until what was uploaded is loaded."""
    assert made.status_code == 202, made.text
    state = made.json()
    deadline = time.monotonic() + 300
    while state["state"] in ("queued", "running") and time.monotonic() < deadline:
        time.sleep(0.1)
        state = httpx.get(f"{url}/v2/corepool/compilations/{state['id']}", headers=headers, timeout=60).json()
    assert state["state"] == "done", state


def load_model(url: str, admin: str, folder: Path) -> dict[str, str]:
    """Add a tenant with a model; returns the headers of its requests."""
    headers = tenant(url, admin)
    toy_package(preset("tiny")).save(folder / "m.cpk", preset("tiny"))
    data = (folder / "m.cpk").read_bytes()
    place = f"{url}/v2/corepool/models/m/versions/1/model"
    compiled(url, headers, httpx.put(place, content=data, headers=headers, timeout=60))
    return headers


def metrics_of(folder: Path, name: str, **labels: str) -> dict[str, float]:
    """Values of a metric by their first label that is not asked for."""
    ready = next(json.loads(line) for line in (folder / "log").read_text().splitlines() if '"ready"' in line)
    page = httpx.get(f"http://127.0.0.1:{ready['metrics_port']}/metrics", timeout=60).text
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                rest = {key: value for key, value in sample.labels.items() if key not in labels}
                found[rest.get("stage") or rest.get("outcome") or ",".join(rest.values())] = sample.value
    return found


def infer(url: str, headers: dict[str, str]) -> httpx.Response:
    data = np.zeros(432, np.int8).tolist()
    tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": data}
    return httpx.post(f"{url}/v2/models/m/infer", json={"inputs": [tensor]}, headers=headers, timeout=300)


def test_sigterm_under_load_loses_no_answer(tmp_path: Path) -> None:
    with server(tmp_path) as (process, url, admin):
        headers = load_model(url, admin, tmp_path)
        assert infer(url, headers).status_code == 200
        seen: list[Any] = []
        refused = threading.Event()

        def keep_asking() -> None:
            with httpx.Client(headers=headers, timeout=60) as client:
                tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": [1] * 432}
                while not refused.is_set():
                    try:
                        answer = client.post(f"{url}/v2/models/m/infer", json={"inputs": [tensor]})
                    except httpx.ConnectError:  # nobody listens any more
                        refused.set()
                        return
                    except httpx.HTTPError as error:
                        seen.append(error)
                        return
                    seen.append(answer.status_code)
                    if answer.status_code == 503:
                        refused.set()

        clients = [threading.Thread(target=keep_asking) for _ in range(4)]
        for each in clients:
            each.start()
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        for each in clients:
            each.join(60)
        assert process.wait(60) == 0
    answered = [each for each in seen if each == 200]
    assert answered
    # A connection that the server closed while it was idle may be noticed only when the next request is sent on it:
    # that request was not taken, so nothing of it is lost.
    lost = [each for each in seen if each not in (200, 503) and "disconnected without sending" not in str(each)]
    assert lost == []
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    for name in ("rest", "grpc", "metrics"):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            ports = {"rest": 0, "grpc": 0, "metrics": 0, name: port}
            run = subprocess.run(
                [
                    *(sys.executable, "-m", "corepool", "serve", "--config", "tiny"),
                    *("--state-dir", str(tmp_path / name), "--log-level", "error"),
                    *(part for each, at in ports.items() for part in (f"--{each}-port", str(at))),
                ],
                capture_output=True,
                text=True,
                timeout=START_S,
            )
        assert run.returncode == 2
        lines = run.stderr.strip().splitlines()
        assert len(lines) == 1, run.stderr
        assert f"port {port}" in lines[0]
        assert f"{name}_port" in lines[0]


def test_idle_memory_and_log(tmp_path: Path) -> None:
    with server(tmp_path) as (process, url, admin):
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        httpx.get(f"{url}/v2/models/x", headers={"authorization": f"Bearer {admin}"})
        resident = psutil.Process(process.pid).memory_info().rss
        assert resident <= 250 << 20, f"{resident >> 20} MiB"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    text = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {"ready", "request", "draining", "ended"} <= {line["event"] for line in lines}
    assert admin not in text
    assert admin.rpartition("_")[2] not in text
    assert (tmp_path / "state" / "admin.key").stat().st_mode & 0o077 == 0


def test_importing_the_server_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import time, sys; begin = time.process_time(); import corepool.server.app;"
        "print(time.process_time() - begin, *sys.modules)"
    )
    spent, *loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=START_S
    ).stdout.split()
    assert float(spent) <= 2.0
    heavy = {"onnx", "onnxruntime", "numba", "matplotlib", "amaranth", "typer", "tritonclient"}
    assert heavy & set(loaded) == set()


def test_two_servers_on_one_folder_are_refused(tmp_path: Path) -> None:
    with server(tmp_path):
        run = subprocess.run(
            [
                *(sys.executable, "-m", "corepool", "serve", "--config", "tiny"),
                *(
                    "--state-dir",
                    str(tmp_path / "state"),
                    "--rest-port",
                    "0",
                    "--grpc-port",
                    "0",
                    "--metrics-port",
                    "0",
                ),
            ],
            capture_output=True,
            text=True,
            timeout=START_S,
            env={**os.environ, "COREPOOL_LOG__LEVEL": "error"},
        )
        assert run.returncode == 2
        assert len(run.stderr.strip().splitlines()) == 1
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize("wrong", [["--config", "u9"], ["--policy", "chaos"], ["--model-repository", "absent"]])
def test_wrong_settings_are_one_clear_line(tmp_path: Path, wrong: list[str]) -> None:
    run = subprocess.run(
        [
            *(sys.executable, "-m", "corepool", "serve", "--state-dir", str(tmp_path / "s"), "--log-level", "error"),
            *("--rest-port", "0", "--grpc-port", "0", "--metrics-port", "0", *wrong),
        ],
        capture_output=True,
        text=True,
        timeout=START_S,
        cwd=tmp_path,
    )
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    assert wrong[1] in run.stderr


def test_a_server_that_cannot_say_that_it_is_ready_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "corepool", "serve", "--config", "tiny", "--state-dir", str(tmp_path / "state")]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*command, "--rest-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--log-level", "error"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=300,
        )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == ["corepool: error: No space left on device"]
