"""`corepool infer`: one inference at a running server, of a photo or of arrays.

It must not know how models run.
"""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corepool.cli import output
from corepool.cli.client import DEFAULT_URL, Client, KeyOption, TenantOption, UrlOption, quoted
from corepool.cli.common import JsonOption
from corepool.errors import InputError, UnavailableError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[np.generic]]

NAME = "infer"
HEADER = "Inference-Header-Content-Length"
DTYPES = {
    "BOOL": "bool", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8",
    "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")],
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="A photo, or a .npz with arrays by input name.")],
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT.npz", help="Write the outputs here.")
    ] = None,
    version: Annotated[int | None, typer.Option("--version", help="The model's version; else the highest.")] = None,
    lease: Annotated[str | None, typer.Option("--lease", help="The lease to run on; else the automatic one.")] = None,
    priority: Annotated[int, typer.Option("--priority", help="1 goes first; 0 is the default.")] = 0,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    tenant: TenantOption = None,
    json: JsonOption = False,
) -> None:
    """Run a model once; of a vector of scores the likeliest classes are shown."""
    if output_file is not None:
        from corepool.cli.common import refuse_overwriting
        from corepool.files import require_writable

        require_writable(output_file)
        refuse_overwriting(output_file, input_file)
    path = f"/v2/models/{quoted(model)}" + ("" if version is None else f"/versions/{version}")
    with Client(url, key, tenant) as client:
        described = client.ask("GET", path)
        arrays = read_inputs(input_file, described["inputs"])
        parameters: dict[str, Any] = {"binary_data_output": True, "priority": priority}
        if lease is not None:
            parameters["lease"] = lease
        body, size = encode(arrays, described["inputs"], parameters)
        headers = {HEADER: str(size), "content-type": "application/octet-stream"}
        answer = client.send("POST", f"{path}/infer", content=body, headers=headers)
        told, outputs = decode(answer.content, answer.headers.get(HEADER))
    _show(told, outputs, output_file, json)


def read_inputs(file: Path, wanted: list[dict[str, Any]]) -> Arrays:
    """The arrays of a .npz, or a photo for a model with one input [1, 3, H, H]. Raises InputError."""
    import numpy as np

    from corepool.cli.pictures import SUFFIXES, picture

    if file.suffix.lower() in SUFFIXES:
        shape = wanted[0]["shape"] if len(wanted) == 1 else []
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            raise InputError(f"a photo fits a model with one input [1, 3, H, H]; this one has {wanted}")
        return {wanted[0]["name"]: picture(file, shape[2])}
    if file.is_dir():
        raise InputError(f"{file} is a folder, not a .npz or a photo")
    try:
        with np.load(file, allow_pickle=False) as read:
            return {name: read[name] for name in read.files}
    except (ValueError, EOFError, AttributeError, TypeError) as error:
        raise InputError(f"{file} is neither a .npz file nor a photo ({', '.join(SUFFIXES)}): {error}") from None
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise InputError(f"{file} is a damaged .npz file: {error}") from None


def encode(arrays: Arrays, wanted: list[dict[str, Any]], parameters: dict[str, Any]) -> tuple[bytes, int]:
    """The body of a request with binary tensors, and the length of its JSON. Numbers take the types that the model
    wants; what is wrong besides, the server says."""
    import numpy as np

    types = {each["name"]: each["datatype"] for each in wanted}
    tensors, blobs = [], []
    for name, array in arrays.items():
        kind = types.get(name, "FP32")
        data = np.ascontiguousarray(array, np.dtype(DTYPES.get(kind, "float32"))).tobytes()
        tensors.append({"name": name, "datatype": kind, "shape": list(array.shape),
                        "parameters": {"binary_data_size": len(data)}})  # fmt: skip
        blobs.append(data)
    head = json_module.dumps({"inputs": tensors, "parameters": parameters}).encode()
    return b"".join([head, *blobs]), len(head)


def decode(content: bytes, length: str | None) -> tuple[dict[str, Any], Arrays]:
    """The JSON of an answer and its outputs."""
    import numpy as np

    try:
        size = len(content) if length is None else int(length)
        told = json_module.loads(content[:size])
        arrays, at = {}, size
        for each in told["outputs"]:
            kind = np.dtype(DTYPES[each["datatype"]])
            if "data" in each:
                arrays[each["name"]] = np.array(each["data"], kind).reshape(each["shape"])
                continue
            count = each["parameters"]["binary_data_size"]
            arrays[each["name"]] = np.frombuffer(content[at : at + count], kind).reshape(each["shape"])
            at += count
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError(f"the answer is not one of a corepool server: {error}") from None
    return told, arrays


def _show(told: dict[str, Any], outputs: Arrays, output_file: Path | None, json: bool) -> None:
    from corepool.cli.pictures import best

    if output_file is not None:
        from corepool.runtime.outputs import write_npz

        write_npz(output_file, outputs)
    report: dict[str, Any] = {
        "model": told["model_name"],
        "version": told["model_version"],
        **told.get("parameters", {}),
        "outputs": {
            name: {"shape": list(array.shape), "datatype": str(array.dtype)} for name, array in outputs.items()
        },
    }
    scores = [array for array in outputs.values() if array.dtype.kind == "f" and array.size == 1000]
    if scores:
        report["classes"] = best(scores[0])
    if output_file is not None:
        report["output_file"] = str(output_file)
    if json:
        output.write_json(report)
        return
    output.show(output.facts(report["model"], {k: v for k, v in report.items() if k not in ("classes", "outputs")}))
    shapes = [[name, each["datatype"], str(each["shape"])] for name, each in report["outputs"].items()]
    output.show(output.table("Outputs", ("name", "type", "shape"), shapes, left=3))
    if scores:
        rows = [[each["label"], f"{each['probability']:.1%}", each["class"]] for each in report["classes"]]
        output.show(output.table("Classes", ("label", "probability", "index"), rows))
