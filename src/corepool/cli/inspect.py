"""`corepool inspect`: shows what is in a model package, and the streams that it becomes.

It must not know how layers are tiled or linked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corepool.cli import output
from corepool.cli.common import JsonOption, PackageArgument, check_cores, naming, open_model
from corepool.cli.compile import predicted, predictions
from corepool.errors import InputError

if TYPE_CHECKING:
    from corepool.compiler.dynamic.linker import Linked
    from corepool.compiler.model import ModelPackage

NAME = "inspect"


def command(
    model: PackageArgument,
    cores: Annotated[int | None, typer.Option(metavar="N", help="Show the tilings chosen for N cores.")] = None,
    listing: Annotated[bool, typer.Option("--listing", help="Show the instruction streams (needs --cores).")] = False,
    json: JsonOption = False,
) -> None:
    """Show a package's layers, the tilings chosen for N cores, and where each operator runs and why."""
    if cores is None and listing:
        raise InputError("--listing needs --cores N: streams differ with the number of cores")
    package, config = open_model(model)
    if cores is not None:
        check_cores(cores, config)
    meta, linked = package.meta, None
    with naming(model):
        outputs = _outputs(package)
    report: dict[str, Any] = {
        "model": meta["model"],
        "config": meta["config"],
        "macs": meta["macs"],
        "package_bytes": package.size,
        "weights_bytes": meta["window"]["weights_bytes"],
        "window_bytes": meta["window"]["window_bytes"],
        "inputs": meta.get("head_inputs", meta["inputs"]),
        "device_inputs": meta["inputs"],
        "outputs": outputs,
        "device_outputs": meta["outputs"],
        "layers": [_layer(layer, cores) for layer in meta["layers"]],
        "host_nodes": meta["host_nodes"],
        "removed": meta["removed"],
        "predicted_cycles": predicted(meta),
    }
    if cores is not None:
        from corepool.compiler.dynamic.linker import link

        with naming(model):
            linked = link(package, range(cores), config)
        report |= {"cores": cores, "instructions": linked.instruction_count, "stream_bytes": linked.stream_bytes}
    if json:
        if listing and linked is not None:
            report["listing"] = [
                {"layer": layer, "core": core, "lines": list(lines)}
                for layer, core, lines in _listing([each["name"] for each in meta["layers"]], linked)
            ]
        output.write_json(report)
    elif listing and linked is not None:
        for layer, core, lines in _listing([each["name"] for each in meta["layers"]], linked):
            output.write(f"; layer {output.printable(layer)}, core {core}")
            for line in lines:
                output.write(line)
    else:
        _show(report)


def _outputs(package: ModelPackage) -> list[dict[str, Any]]:
    """The network's outputs as `run` writes them: name, type, shape (None: known only when run), and who makes them."""
    ports = {port["name"]: port for port in package.meta["outputs"]}
    made: list[dict[str, Any]] = []
    read: set[str] = set()
    if package.tail:
        from corepool.runtime.tail import Tail

        tail = Tail(package.tail, package.meta["tail_outputs"])
        read = tail.reads
        made = [{"name": name, "dtype": kind, "shape": shape, "made_by": "host"} for name, kind, shape in tail.makes]
    device = [
        {"name": name, "dtype": "float32", "shape": port["shape"], "made_by": "device"}
        for name, port in ports.items()
        if name not in read
    ]
    return [*device, *made]


def _layer(layer: dict[str, Any], cores: int | None) -> dict[str, Any]:
    shown = dict(layer)
    if cores is not None:
        shown["tiling"] = layer["tilings"][layer["choice"][cores - 1]]
    return shown


def _listing(layers: list[str], linked: Linked) -> Iterator[tuple[str, int, Iterator[str]]]:
    """The streams as text, cut into layers: layer name, core, lines."""
    from corepool.isa.listing import listing
    from corepool.isa.table import INSTRUCTION_BYTES

    texts = [list(listing(stream.tobytes())) for stream in linked.streams]
    for number, name in enumerate(layers):
        for place, core in enumerate(linked.cores):
            starts = [*linked.layer_starts[place].tolist(), linked.streams[place].nbytes // INSTRUCTION_BYTES]
            yield name, core, iter(texts[place][starts[number] : starts[number + 1]])


def _show(report: dict[str, Any]) -> None:
    cores = report.get("cores")
    head = {
        "configuration": report["config"],
        "work": f"{report['macs'] / 1e9:.3f} GMAC",
        "package": f"{report['package_bytes']:,} bytes, {report['weights_bytes']:,} of them weights",
        "inputs": "; ".join(_port(port) for port in report["inputs"]),
        "outputs": "; ".join(_port(port) for port in report["outputs"]),
    }
    if report["host_nodes"]:
        from_host = ", ".join(port["name"] for port in report["outputs"] if port["made_by"] == "host")
        direct = {port["name"] for port in report["outputs"] if port["made_by"] == "device"}
        reads = ", ".join(port["name"] for port in report["device_outputs"] if port["name"] not in direct)
        operators = ", ".join(dict.fromkeys(node["op"] for node in report["host_nodes"]))
        sent = {port["name"] for port in report["inputs"]}
        made = ", ".join(port["name"] for port in report["device_inputs"] if port["name"] not in sent)
        parts = [f"for the device's {made}"] if made else []
        parts += [f"on {reads}, for {from_host}"] if from_host else []
        head["host"] = f"{operators} {'; and '.join(parts)}"
    if cores is not None:
        head["streams"] = f"{report['instructions']:,} instructions, {report['stream_bytes']:,} bytes for {cores} cores"
    things: list[Any] = [output.facts(report["model"], head), ""]
    rows = [
        (
            number,
            layer["name"],
            layer["kind"],
            "x".join(str(size) for size in layer["output"]),
            f"{layer['macs'] / 1e6:.1f}",
            layer["tiling"] if cores is not None else f"{len(layer['tilings'])} prepared",
        )
        for number, layer in enumerate(report["layers"])
    ]
    columns = ("#", "layer", "kind", "output", "MMAC", "tiling" if cores is None else f"tiling for {cores}")
    things.append(output.table("on the device", columns, rows, left=len(columns), widest={columns[-1]: 14}))
    if report["host_nodes"]:
        nodes = [(node["name"], node["op"], node["reason"]) for node in report["host_nodes"]]
        things.append(output.table("on the host", ("node", "operator", "why"), nodes, left=3))
    if report["removed"]:
        gone = [(name, what) for name, what in report["removed"].items() if what != "constant"]
        constants = len(report["removed"]) - len(gone)
        gone += [(f"{constants} more", "constants")] if constants else []
        things.append(output.table("not executed at all", ("node", "what became of it"), gone, left=2))
    things.append(predictions(report["config"], report["predicted_cycles"]))
    output.show(*things)


def _port(port: dict[str, Any]) -> str:
    return f"{port['name']} {port['dtype']}{port['shape']}"
