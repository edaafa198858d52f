"""Request rate of the server against a bare FastAPI echo of the same tensor, both in one run.

Prints one line a round and the ratio of the medians; --json writes all figures. Rounds of both alternate, so that
whatever else the machine does falls on both. The device time of the model is negligible, what simulating it takes is
not: what is measured is the way of 1 x 3 x 224 x 224 float32 values, in binary, through HTTP, the data plane, the
engine and back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (1, 3, 224, 224)
BUSY = 0.15  # processors that others may take before the ratio is worth nothing
ECHO = """
import socket, sys, uvicorn
from fastapi import FastAPI, Request, Response
app = FastAPI()
@app.post("/echo")
async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream")
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
config = uvicorn.Config(app, log_level="warning", access_log=False, loop="uvloop", http="httptools")
uvicorn.Server(config).run([listener])
"""


def make_package(path: Path, config_name: str, stride: int) -> None:
    """A small network from ONNX: a 3x3 convolution to 8 channels, ReLU, global average, 10 scores."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from corepool.compiler.static import compile_model
    from corepool.config import preset

    random = np.random.default_rng(1)
    values = {
        "w": random.normal(0, 0.2, (8, 3, 3, 3)),
        "b": random.normal(0, 0.1, 8),
        "v": random.normal(0, 0.3, (10, 8)),
        "c": np.zeros(10),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["conv"], strides=[stride] * 2, pads=[1] * 4),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v", "c"], ["output"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, (1, 10))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    file = path.with_suffix(".onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    samples = random.normal(0, 1, (4, *SHAPE[1:])).astype(np.float32)
    compile_model(file, preset(config_name), {"input": samples}).save(path)


def ask(url: str, method: str, path: str, key: str, body: Any = None) -> Any:
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"authorization": f"Bearer {key}"}, method=method)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.loads(answer.read())


def start(folder: Path, config: str) -> tuple[subprocess.Popen[str], int, str, str]:
    """A server with one tenant and the model; its process, port, the tenant's key and the operators'."""
    command = [
        *(sys.executable, "-m", "corepool", "serve", "--state-dir", str(folder / "state"), "--config", config),
        *("--rest-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--log-level", "warning"),
        *("--rates-requests-per-s", "1000000", "--rates-burst", "1000000"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = ""
    while "REST" not in line:
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
    found = re.search(r"REST http://127\.0\.0\.1:(\d+)", line)
    assert found is not None
    port, admin = int(found[1]), (folder / "state" / "admin.key").read_text().strip()
    url = f"http://127.0.0.1:{port}"
    key = ask(url, "POST", "/v2/corepool/tenants", admin, {"name": "bench", "quota_cores": 4})["key"]
    made = ask(url, "PUT", "/v2/corepool/models/small/versions/1/model", key, (folder / "small.cpk").read_bytes())
    while made["state"] in ("queued", "running"):
        time.sleep(0.2)
        made = ask(url, "GET", f"/v2/corepool/compilations/{made['id']}", key)
    if made["state"] != "done":
        raise SystemExit(f"the model was not loaded: {made['error']}")
    return process, port, key, admin


def requests(key: str) -> tuple[bytes, bytes]:
    """The bytes of a request for an inference, and of one for an echo."""
    tensor = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32).tobytes()
    described = {"name": "input", "datatype": "FP32", "shape": SHAPE, "parameters": {"binary_data_size": len(tensor)}}
    text = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()

    def http(path: str, extra: str, body: bytes) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        return head.encode() + body

    auth = f"Authorization: Bearer {key}\r\nInference-Header-Content-Length: {len(text)}\r\n"
    return http("/v2/models/small/infer", auth, text + tensor), http("/echo", "", tensor)


async def rate(port: int, request: bytes, seconds: float, in_flight: int) -> float:
    """Answers a second with so many requests in flight, each on a connection of its own."""
    answered = 0
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        while time.perf_counter() < end:
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"refused: {head[:200]!r}")
            found = re.search(rb"\r\ncontent-length: (\d+)", head)
            assert found is not None
            await reader.readexactly(int(found[1]))
            answered += 1
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(in_flight)))
    return answered / (time.perf_counter() - begin)


def processor_s(pid: int) -> float:
    """Processor time that a process has taken so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def others_take(seconds: float = 2.0) -> float:
    """How many processors others keep busy while this process sleeps."""

    def read() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]  # idle, and idle until something is read or written

    (before, idle), _ = read(), time.sleep(seconds)
    after, still_idle = read()
    return (1 - (still_idle - idle) / max(after - before, 1)) * (os.cpu_count() or 1)


def warn_if_busy() -> float:
    """``others_take``, with a warning if that spoils what is about to be measured."""
    taken = others_take()
    if taken > BUSY:
        print(
            f"warning: others keep {taken:.1f} of {os.cpu_count()} processors busy. The echo needs one, the server two:"
            " the ratio and all percentiles are worth nothing now; processor times still tell something",
            file=sys.stderr,
        )
    return taken


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds."""
    import uvloop

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_package(folder / "small.cpk", options.config, options.stride)
        echo = subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
        server = None
        try:
            assert echo.stdout is not None
            echo_port = int(echo.stdout.readline())
            server, port, key, _ = start(folder, options.config)
            infer_request, echo_request = requests(key)
            rows = []
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(rate(port, infer_request, 3, options.in_flight))  # everything is loaded and compiled
                for number in range(options.rounds):
                    row = {}
                    for kind, process, at, request in (
                        ("echo", echo, echo_port, echo_request),
                        ("infer", server, port, infer_request),
                    ):
                        before = processor_s(process.pid)
                        row[kind] = runner.run(rate(at, request, options.seconds, options.in_flight))
                        spent = processor_s(process.pid) - before
                        row[f"{kind}_processor_ms"] = spent / (row[kind] * options.seconds) * 1e3
                    rows.append(row)
                    print(
                        f"round {number + 1}: echo {row['echo']:.0f}/s ({row['echo_processor_ms']:.2f} ms of processor"
                        f" each), inference {row['infer']:.0f}/s ({row['infer_processor_ms']:.2f} ms)",
                        flush=True,
                    )
        finally:
            for process in (echo, server):
                if process is not None:
                    process.send_signal(signal.SIGTERM)
                    process.wait(60)
    echo_rate, infer_rate = (statistics.median(row[kind] for row in rows) for kind in ("echo", "infer"))
    return {
        "rounds": rows,
        "echo_per_s": echo_rate,
        "infer_per_s": infer_rate,
        "ratio": infer_rate / echo_rate,
        "in_flight": options.in_flight,
        "config": options.config,
        "stride": options.stride,
        "processors": os.cpu_count(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--config", default="u200")
    parser.add_argument("--stride", type=int, default=4, help="of the network's convolution")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    taken = warn_if_busy()
    result = {**measure(options), "others_processors": taken}
    print(f"echo {result['echo_per_s']:.0f}/s, inference {result['infer_per_s']:.0f}/s: {result['ratio']:.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
