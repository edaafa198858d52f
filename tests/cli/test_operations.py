"""The operator's manual against the program: its quick start is run, its commands, settings and metrics exist."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from corepool.cli.main import app
from corepool.server.settings import Settings, keys

ROOT = Path(__file__).resolve().parents[2]
MANUAL = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
LIMIT_S = 600


def blocks(text: str) -> list[tuple[str, str]]:
    """Languages and texts of fenced blocks, in order."""
    return BLOCK.findall(text)


QUICK_START = blocks(MANUAL.partition("## Quick start")[2].partition("\n## ")[0])


def test_readme_tells_the_same_quick_start() -> None:
    """Where README shows how to serve, it shows what is run here."""
    section = README.partition("## Serve it")[2].partition("\n## ")[0]
    assert not section or blocks(section) == QUICK_START


def test_the_client_takes_less_than_ten_lines() -> None:
    kind, text = QUICK_START[2]
    assert kind == "python"
    assert len([line for line in text.splitlines() if line.strip()]) < 10


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_quick_start(tmp_path: Path) -> None:
    """As it stands in the manual, from a folder that shows the project's src; only the ports are others."""
    (serve_kind, serve), (shell_kind, shell), (_, python) = QUICK_START
    assert (serve_kind, shell_kind) == ("sh", "sh")
    (tmp_path / "src").symlink_to(ROOT / "src")
    rest = free_port()
    binary = Path(sys.executable).parent
    env = {name: value for name, value in os.environ.items() if not name.startswith("COREPOOL_")}
    env |= {"PATH": f"{binary}:{env.get('PATH', '')}", "COREPOOL_REST_PORT": str(rest), "COREPOOL_GRPC_PORT": "0",
            "COREPOOL_METRICS_PORT": "0", "PYTHONUNBUFFERED": "1"}  # fmt: skip
    words = shlex.split(serve, comments=True)
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True, cwd=tmp_path, env=env)
    assert server.stdout is not None
    try:
        while "REST" not in (line := server.stdout.readline()):
            assert line, (tmp_path / "log").read_text()
        asking = {name: value for name, value in env.items() if not name.endswith("_PORT")}
        asking["COREPOOL_URL"] = f"http://127.0.0.1:{rest}"
        done = subprocess.run(["bash", "-e"], input=shell, capture_output=True, text=True, cwd=tmp_path, env=asking,
                              timeout=LIMIT_S)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "mobilenet_v2 is ready" in done.stdout
        assert "Egyptian Mau" in done.stdout
        client = python.replace("127.0.0.1:8000", f"127.0.0.1:{rest}")
        ran = subprocess.run([sys.executable, "-c", client], capture_output=True, text=True, cwd=tmp_path, env=asking,
                             timeout=LIMIT_S)  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == "Egyptian Mau\n"
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait(30)
        server.stdout.close()


def commands() -> list[str]:
    """Command lines of the manual outside of the quick start."""
    lines = re.findall(r"^    (corepool .*)$", MANUAL, re.M)
    return [line.partition("    #")[0].partition(" > ")[0].strip() for line in lines]


def test_there_are_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_manual_exist(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    found = typer.main.get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found = found.commands[words.pop(0)]  # type: ignore[attr-defined]
    if found.name == "serve":
        flags = {key.flag for key in keys()} | {"--settings", "--print-config"}
        assert {word for word in words if word.startswith("--")} <= flags
        return
    found.make_context("corepool", words, resilient_parsing=False).close()


def test_settings_of_the_manual_exist() -> None:
    table = MANUAL.partition("## Settings")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert named == set(Settings.model_fields)
    flags, variables = {key.flag for key in keys()}, {key.variable for key in keys()}
    assert set(re.findall(r"`(--(?:limits|metrics)-[a-z-]+)`", MANUAL)) <= flags
    known = variables | {"COREPOOL_URL", "COREPOOL_KEY"}
    assert set(re.findall(r"`(COREPOOL_\w+[A-Z])`", MANUAL)) <= known
