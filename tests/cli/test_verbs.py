"""The verbs as processes on a small network: what `--json` promises, what files hold, and every bad input.

It must not know how compilation or devices work.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from corepool.cli.common import naming, open_model
from corepool.compiler import package
from corepool.errors import InputError, LinkError

SRC = Path(__file__).resolve().parents[2] / "src"
Run = Callable[..., subprocess.CompletedProcess[str]]


def corepool(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "COREPOOL_DEBUG"} | {"PYTHONPATH": str(SRC)}
    command = [sys.executable, "-m", "corepool", *map(str, arguments)]
    settings = {"capture_output": True, "text": True, "check": False, "timeout": 300, "env": env} | options
    return subprocess.run(command, **settings)  # type: ignore[call-overload, no-any-return]


def report(*arguments: object) -> dict[str, object]:
    """What a command prints with --json; it must succeed and print nothing else."""
    done = corepool(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def refused(*arguments: object) -> str:
    done = corepool(*arguments)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("corepool: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def small_model() -> onnx.ModelProto:
    """A float network, "photo" [1, 3, 16, 16] to "chances" [1, 6]: two convolutions, mean, dense layer, softmax."""
    random = np.random.default_rng(3)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["photo", "w1", "b1"], ["c1"], name="one", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"], name="bend"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c2"], ["g"], name="mean"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["d"], name="dense", transB=1),
        helper.make_node("Softmax", ["d"], ["chances"], name="soft", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("photo", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("chances", TensorProto.FLOAT, [1, 6])],
        [weights("w1", 8, 3, 3, 3), weights("b1", 8), weights("w2", 12, 8, 3, 3), weights("b2", 12),
         weights("w3", 6, 12), weights("b3", 6)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def photo(seed: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.onnx, calibration.npz, in.npz and small.cpk, compiled for tiny by the command itself."""
    folder = tmp_path_factory.mktemp("verbs")
    onnx.save(small_model(), folder / "small.onnx")
    np.savez(folder / "calibration.npz", photo=photo(1, 12))
    np.savez(folder / "in.npz", photo=photo(2))
    found = report(
        "compile", folder / "small.onnx", "-o", folder / "small.cpk", "--calibration", folder / "calibration.npz",
        "--config", "tiny",
    )  # fmt: skip
    (folder / "report.json").write_text(json.dumps(found))
    return folder


def test_report_of_compilation(place: Path) -> None:
    found = json.loads((place / "report.json").read_text())
    assert found["static_compile_s"] > 0
    assert found["layers"] >= 3
    assert found["package_bytes"] == (place / "small.cpk").stat().st_size
    assert [(node["name"], node["op"]) for node in found["host_nodes"]] == [("soft", "Softmax")]
    assert all(node["reason"] for node in found["host_nodes"])
    assert list(found["predicted_cycles"]) == ["1", "2", "3", "4"]
    assert all(cycles > 0 for cycles in found["predicted_cycles"].values())
    assert "flat" in found["removed"]
    assert set(found["stages_s"]) == {"import", "compile"}
    assert all(0 < seconds < found["static_compile_s"] for seconds in found["stages_s"].values())


@pytest.mark.parametrize("cores", [1, 4])
def test_run_answers_as_the_float_network_does(place: Path, tmp_path: Path, cores: int) -> None:
    out, trace = tmp_path / "out.npz", tmp_path / "t.json"
    found = report(
        "run", place / "small.cpk", "--input", place / "in.npz", "--output", out, "--cores", cores, "--trace", trace
    )
    keys = {"dynamic_compile_ms", "cycles", "latency_ms", "fps", "share_of_peak", "ddr_bytes"}
    assert keys <= set(found)
    cycles, fps = float(str(found["cycles"])), float(str(found["fps"]))
    assert fps == pytest.approx(300e6 / cycles, rel=1e-4)
    assert found["latency_ms"] == pytest.approx(cycles / 300e3, rel=1e-4)
    assert 0 < float(str(found["share_of_peak"])) < 1
    session = onnxruntime.InferenceSession(str(place / "small.onnx"), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"photo": photo(2)})[0]
    with np.load(out) as arrays:
        assert list(arrays) == ["chances"]
        assert arrays["chances"].dtype == np.float32
        assert np.allclose(arrays["chances"], wanted, atol=0.05)
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == found["instructions"] or len(events) > 10
    timed = report("run", place / "small.cpk", "--cores", cores, "--timing-only")
    assert timed["cycles"] == found["cycles"]


def test_all_numbers_of_cores_answer_alike(place: Path, tmp_path: Path) -> None:
    answers = set()
    for cores in (2, 3):
        out = tmp_path / f"{cores}.npz"
        report("run", place / "small.cpk", "--input", place / "in.npz", "--output", out, "--cores", cores)
        with np.load(out) as arrays:
            answers.add(arrays["chances"].tobytes())
    assert len(answers) == 1


def test_inspect(place: Path) -> None:
    found = report("inspect", place / "small.cpk", "--cores", 3, "--listing")
    layers = found["layers"]
    assert isinstance(layers, list)
    assert all({"name", "kind", "origin", "output", "macs", "tilings", "tiling"} <= set(layer) for layer in layers)
    parts = found["listing"]
    assert isinstance(parts, list)
    assert {part["core"] for part in parts} == {0, 1, 2}
    assert sum(len(part["lines"]) for part in parts) == found["instructions"]
    assert parts[-1]["lines"][-1].split()[1] == "END"
    text = corepool("inspect", place / "small.cpk", "--cores", 3, "--listing").stdout
    assert text.startswith("; layer ")
    assert text.count("; layer ") == len(parts)
    assert text.count(" END") == 3


@pytest.mark.parametrize("cores", ["17", "5", "0", "-1", "-30"])
@pytest.mark.parametrize("listing", [(), ("--listing",), ("--json",)])
def test_inspect_refuses_cores_that_there_are_not(place: Path, cores: str, listing: tuple[str, ...]) -> None:
    message = f"--cores must be 1 to 4 for configuration 'tiny', not {cores}"
    assert message in refused("inspect", place / "small.cpk", "--cores", cores, *listing)


EVIL = "\x1b[31mone\u202e\n"


def odd_model() -> onnx.ModelProto:
    """As ``small_model``, but names are traps; it also gives "file", what the device makes, and "cls", the best."""
    model = small_model()
    model.graph.node[0].name = EVIL
    last = model.graph.node[-1]
    model.graph.node[-2].output[0] = last.input[0] = "file"
    last.output[0] = "../allow_pickle"
    model.graph.node.append(helper.make_node("ArgMax", ["file"], ["cls"], name="best", axis=1))
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("../allow_pickle", TensorProto.FLOAT, [1, 6]),
            ("cls", TensorProto.INT64, [1, 1]),
            ("file", TensorProto.FLOAT, [1, 6]),
        )
    )
    return model


@pytest.fixture(scope="module")
def odd(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    onnx.save(odd_model(), folder / "odd.onnx")
    report(
        "compile", folder / "odd.onnx", "-o", folder / "odd.cpk", "--calibration", place / "calibration.npz",
        "--config", "tiny",
    )  # fmt: skip
    return folder / "odd.cpk"


def test_outputs_of_any_name_are_written(place: Path, odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    report("run", odd, "--input", place / "in.npz", "--output", out, "--cores", 2)
    with np.load(out) as arrays:
        assert set(arrays) == {"../allow_pickle", "cls", "file"}
        assert arrays["cls"].dtype == np.int64
        assert arrays["cls"].item() == arrays["file"].argmax()
        powers = np.exp(arrays["file"] - arrays["file"].max())
        assert np.allclose(arrays["../allow_pickle"], powers / powers.sum(), atol=1e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]


def test_inspect_tells_the_networks_outputs_and_what_the_host_does(place: Path, odd: Path) -> None:
    outputs = report("inspect", place / "small.cpk")["outputs"]
    assert outputs == [{"name": "chances", "dtype": "float32", "shape": [1, 6], "made_by": "host"}]
    found = report("inspect", odd)["outputs"]
    assert isinstance(found, list)
    assert {(each["name"], each["dtype"]) for each in found} == {
        ("../allow_pickle", "float32"), ("cls", "int64"), ("file", "float32")
    }  # fmt: skip
    text = corepool("inspect", place / "small.cpk").stdout
    assert "chances float32[1, 6]" in text
    assert "Softmax on " in text
    assert ", for chances" in text


@pytest.mark.parametrize(
    "arguments", [("inspect",), ("inspect", "--cores", "2"), ("inspect", "--cores", "1", "--listing")]
)
def test_names_cannot_steer_the_terminal(odd: Path, arguments: tuple[str, ...]) -> None:
    verb, *rest = arguments
    done = corepool(verb, odd, *rest)
    assert done.returncode == 0
    assert done.stdout.replace("\n", "").isprintable()
    assert "\\x1b[31mone" in done.stdout.replace("\n", "")


def test_a_package_is_read_and_checked_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = package.parse
    monkeypatch.setattr(package, "parse", lambda *given: opened.append(1) or real(*given))
    model, config = open_model(place / "small.cpk")
    assert (config.name, model.meta["model"], len(opened)) == ("tiny", "small", 1)


def test_trouble_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"^a\.cpk: too many$"), naming(Path("a.cpk")):
        raise LinkError("too many")
    with pytest.raises(InputError, match=r"^b\.npz: wrong$"), naming(Path("a.cpk"), Path("b.npz"), None):
        raise InputError("b.npz: wrong")


@pytest.mark.parametrize("arguments", [("inspect",), ("inspect", "--cores", "2"), ("relink", "--repeat", "3")])
def test_tables_fit_80_columns(place: Path, arguments: tuple[str, ...]) -> None:
    verb, *rest = arguments
    done = corepool(verb, place / "small.cpk", *rest)
    assert done.returncode == 0
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert "soft" in done.stdout or verb == "relink"


def test_relink(place: Path) -> None:
    found = report("relink", place / "small.cpk", "--repeat", 20)
    rows = found["cores"]
    assert isinstance(rows, list)
    assert [row["cores"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert set(row) == {"cores", "p50_ms", "p99_ms", "max_ms", "instructions", "stream_bytes"}
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert row["stream_bytes"] == 32 * row["instructions"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--cores", "0"), "--cores must be 1 to 4"),
        (("--cores", "17"), "--cores must be 1 to 4 for configuration 'tiny', not 17"),
        (("--cores", "-1"), "--cores"),
        (("--cores", "two"), "--cores"),
        (("--cores", "2"), "--input IN.npz is missing"),
        (("--cores", "2", "--timing-only", "--output", "o.npz"), "--timing-only"),
        (("--cores", "2", "--input", "none.npz"), "none.npz: No such file"),
        (("--cores", "2", "--input", "."), "folder"),
        (("--cores", "2", "--input", "small.onnx"), "not a sound .npz file"),
        (("--cores", "2", "--input", "in.npz", "--output", "in.npz"), "overwrite the input"),
        (("--cores", "2", "--input", "in.npz", "--output", "none/o.npz"), "folder"),
        (("--cores", "2", "--input", "in.npz", "--trace", "small.cpk"), "overwrite the input"),
        (("--cores", "2", "--timing-only", "--trace", "."), "folder"),
        (("--cores", "2", "--input", "in.npz", "--output", "x", "--trace", "./x"), "name the same file"),
        (("--cores", "2", "--input", "in.npz", "--output", "small.cpk"), "overwrite the input"),
        (("--cores", "2", "--input", "in.npz", "--trace", "in.npz"), "overwrite the input"),
    ],
)
def test_wrong_runs_are_refused(place: Path, extra: tuple[str, ...], message: str) -> None:
    before = sorted(entry.name for entry in place.iterdir())
    names = [str(place / word) if word in ("small.onnx", "small.cpk", "in.npz", ".") else word for word in extra]
    assert message in refused("run", place / "small.cpk", *names)
    assert sorted(entry.name for entry in place.iterdir()) == before


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": photo(0)}, "there is no input 'image'; 'photo' is missing; expected: 'photo' float32[1, 3, 16, 16]"),
        ({"photo": photo(0)[0]}, "must have the shape [1, 3, 16, 16], not [3, 16, 16]"),
        ({"photo": photo(0).astype(np.float64)}, "must be float32, not float64"),
        ({"photo": np.full_like(photo(0), np.nan)}, "in.npz: wrong input: 'photo' holds NaN"),
    ],
)
def test_wrong_inputs_are_refused(place: Path, tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    out = tmp_path / "out.npz"
    text = refused("run", place / "small.cpk", "--cores", 1, "--input", tmp_path / "in.npz", "--output", out)
    assert message in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.npz"]


def test_damaged_packages_are_refused_by_every_verb(place: Path, tmp_path: Path) -> None:
    data = (place / "small.cpk").read_bytes()
    bad = tmp_path / "bad.cpk"
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 8
    newer = bytearray(data)
    newer[8] = 2
    kinds = {
        "truncated": data[:-64],
        "is damaged": bytes(flipped),
        "format 2": bytes(newer),
        "not a compiled model": b"",
        "does not begin with": (place / "small.onnx").read_bytes()[:1000].ljust(1000, b"x"),
    }
    for message, content in kinds.items():
        bad.write_bytes(content)
        assert message in refused("inspect", bad)
    assert message in refused("run", bad, "--cores", 1, "--timing-only")
    assert message in refused("relink", bad)
    assert "a folder" in refused("inspect", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("small.onnx",), "calibration"),
        (("in.npz",), "in.npz"),
        ((".",), "irectory"),
        (("none.onnx",), "none.onnx"),
        (("small.onnx", "--calibration", "none.npz"), "none.npz"),
        (("small.onnx", "--calibration", "small.onnx"), "small.onnx"),
        (("small.onnx", "--calibration", "calibration.npz", "--config", "u2000"), "u2000"),
    ],
)
def test_wrong_compilations_leave_nothing(
    place: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    words = [word if word.startswith("-") or word == "u2000" else str(place / word) for word in arguments]
    assert message in refused("compile", *words, "-o", tmp_path / "out.cpk")
    assert list(tmp_path.iterdir()) == []


def test_output_must_not_be_the_model(place: Path) -> None:
    before = (place / "small.onnx").read_bytes()
    assert "overwrite" in refused("compile", place / "small.onnx", "-o", place / "small.onnx")
    assert (place / "small.onnx").read_bytes() == before


def test_half_a_listing_is_enough(place: Path) -> None:
    command = [sys.executable, "-m", "corepool", "inspect", str(place / "small.cpk"), "--cores", "4", "--listing"]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(SRC)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("; layer")
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) in (0, 141)
