"""`corepool model`: models at a running server, loaded from a file or from the server's repository.

It must not know how models are compiled or kept.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from corepool.cli import output
from corepool.cli.client import DEFAULT_URL, Client, KeyOption, TenantOption, UrlOption, quoted
from corepool.cli.common import JsonOption, group
from corepool.errors import InputError, ModelError

app = group("model", "Models of a running server: load, unload, list.")

PATH = "/v2/corepool/models"
POLL_S = 0.1
POLL_LONGEST_S = 2.0
Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")]


@app.command(name="load")
def load(
    name: Name,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="An ONNX file or a .cpk package; without one the server's repository."),
    ] = None,
    version: Annotated[int, typer.Option("--version", help="The version that an uploaded file becomes.")] = 1,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="A .npz with inputs, for a float model; or a folder of photos."),
    ] = None,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    tenant: TenantOption = None,
    json: JsonOption = False,
) -> None:
    """Upload a model, have it compiled, and load it; it can be used when this returns."""
    if file is None and calibration is not None:
        raise InputError("--calibration needs a FILE to upload")
    for given in (file, calibration):
        if given is not None and not given.exists():
            raise FileNotFoundError(2, "No such file or directory", str(given))
    with Client(url, key, tenant) as client:
        if file is None:
            client.ask("POST", f"/v2/repository/models/{quoted(name)}/load")
        else:
            with output.progress(name) as progress:
                _upload(client, name, version, file, calibration, progress)
        rows = [row for row in _index(client) if row["name"] == name and row["state"] == "READY"]
    versions = [row["version"] for row in rows]
    made = {"name": name, "versions": versions}
    output.answer(json, made, f"model {name} is ready: version {', '.join(versions)}")


def _upload(
    client: Client, name: str, version: int, file: Path, calibration: Path | None, progress: output.Progress
) -> None:
    where = f"{PATH}/{quoted(name)}/versions/{version}"
    if calibration is not None and calibration.is_dir():
        client.ask("PUT", f"{where}/calibration", content=_photos(calibration))
    elif calibration is not None:
        client.upload(f"{where}/calibration", calibration, progress, "calibration")
    state = client.upload(f"{where}/model", file, progress, "upload")
    pause = POLL_S
    while state["state"] in ("queued", "running"):
        progress(state["stage"] or state["state"], state["progress"])
        time.sleep(pause)
        pause = min(pause * 1.5, POLL_LONGEST_S)
        state = client.ask("GET", f"/v2/corepool/compilations/{state['id']}")
    if state["state"] != "done":
        raise ModelError(state["error"] or f"the compilation was {state['state']}")


def _photos(folder: Path) -> bytes:
    """Photos of a folder as calibration data for a classifier of ImageNet: an array "input", as float32."""
    import io

    import numpy as np

    from corepool.cli.pictures import picture

    files = sorted(each for each in folder.iterdir() if each.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise InputError(f"{folder} holds no .jpg or .png")
    made = io.BytesIO()
    np.savez(made, input=np.concatenate([picture(file) for file in files]))
    return made.getvalue()


@app.command(name="unload")
def unload(
    name: Name,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the uploaded files too.")] = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    tenant: TenantOption = None,
    json: JsonOption = False,
) -> None:
    """Give a model's memory back; inferences that run or wait end first."""
    with Client(url, key, tenant) as client:
        if delete:
            client.ask("DELETE", f"{PATH}/{quoted(name)}")
        else:
            client.ask("POST", f"/v2/repository/models/{quoted(name)}/unload")
    text = f"model {name} is unloaded{' and its files are deleted' if delete else ''}"
    output.answer(json, {"name": name, "unloaded": True, "deleted": delete}, text)


@app.command(name="list")
def list_(
    url: UrlOption = DEFAULT_URL, key: KeyOption = None, tenant: TenantOption = None, json: JsonOption = False
) -> None:
    """All models, loaded or not."""
    with Client(url, key, tenant) as client:
        rows = _index(client)
    whose = any("tenant" in row for row in rows)
    keys = (*(("tenant",) if whose else ()), "name", "version", "state", "reason")
    columns = ["model" if key == "name" else key for key in keys]
    shown = [[row.get(key) or "" for key in keys] for row in rows]
    output.answer(json, {"models": rows}, output.table("Models", columns, shown, left=len(columns)))


def _index(client: Client) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.ask("POST", "/v2/repository/index", json={})
    return rows
