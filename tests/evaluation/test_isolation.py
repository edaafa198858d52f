"""The isolation experiment notices what it must, and its neighbours really do their worst.

It must not know how the simulator keeps leases apart.
"""

import json

import pytest

from corepool.config import preset
from corepool.device.base import Fault
from corepool.device.simulator import Simulator
from corepool.errors import DeviceError
from corepool.evaluation import hardware_sample
from corepool.evaluation.isolation import Victim, run
from corepool.evaluation.lab import Lab
from corepool.evaluation.neighbours import KINDS, Attack, Neighbours, grouped
from corepool.evaluation.results import plain

CONFIG = preset("u200")
CYCLES = 20_000


def hostile(kind: str, **parameters: int) -> tuple[Simulator, Neighbours]:
    device = Simulator(CONFIG, data=False)
    return device, Neighbours.hostile(device, range(4), Attack(kind, **parameters))


@pytest.mark.parametrize("kind", ["loads", "saves", "both", "no sync", "fetches"])
def test_attacks_go_on(kind: str) -> None:
    device, neighbours = hostile(kind)
    neighbours.poke()
    (lease,) = neighbours.leases
    with pytest.raises(DeviceError, match="still running"):
        device.wait(lease, CYCLES)
    moved = neighbours.moved_bytes([0])
    slots = CYCLES * 64 * 3 // 4  # what the bank can move
    if kind == "fetches":
        assert moved > 0
    else:
        assert moved > {"no sync": 0.7, "saves": 0.6}.get(kind, 0.9) * slots
    neighbours.close()


def test_faults_come_and_are_started_again() -> None:
    device, neighbours = hostile("faults")
    faults = set()
    for _ in range(3):
        neighbours.poke()
        completion = device.wait(neighbours.leases[0], CYCLES)
        assert completion.fault is not None
        faults.add(completion.fault.fault)
    assert faults <= {Fault.UNDEFINED, Fault.WINDOW}
    assert neighbours.restarts == 3


@pytest.mark.parametrize("kind", KINDS)
def test_any_shape_of_attack_stays_in_its_window(kind: str) -> None:
    for pixels, stride, address in ((1, 0, 0), (4096, 4096, 8 * 511), (129, 1, 8), (4096, 0, 4088)):
        device, neighbours = hostile(kind, pixels=pixels, stride=stride, address=address, group=4)
        neighbours.poke()
        try:
            fault = device.wait(neighbours.leases[0], CYCLES).fault
        except DeviceError:
            continue  # still running
        assert (fault is not None) == (kind == "faults")


def test_groups() -> None:
    assert grouped([2, 3, 4, 5, 6], 4, CONFIG) == [(2, 3), (4, 5, 6)]
    assert grouped([2, 3, 4, 5, 6], 1, CONFIG) == [(2,), (3,), (4,), (5,), (6,)]
    assert grouped([0, 1, 8, 15], 16, CONFIG) == [(0, 1, 8, 15)]


def test_a_deviation_is_seen(lab: Lab) -> None:
    victim = Victim(lab, lab.package(lab.networks[0]), [1, 2], 1 << 40)
    attack = Attack("both", phase=77)
    seen = victim.beside(lambda device, cores: Neighbours.hostile(device, cores, attack), attack.phase)
    assert (seen.deviation_cycles, seen.latency_deviation_cycles, seen.ended) == (0, 0, True)
    assert seen.instructions > 10
    assert seen.neighbour_bytes > 0
    victim._alone[-1, 1] += 3
    victim.alone_cycles += 2
    seen = victim.beside(lambda device, cores: Neighbours.hostile(device, cores, attack), attack.phase)
    assert (seen.deviation_cycles, seen.latency_deviation_cycles) == (3, -2)


def test_sample_of_the_hardware(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_sample, "compiled", lambda config: True)  # compiles it if it is not
    rows = hardware_sample.sample(lab, lambda what, share: None)
    assert not isinstance(rows, str)
    for row in rows:
        assert (row["deviation_cycles"], row["same_bytes"], row["same_counters"]) == (0, True, True)
        assert row["as_simulated"]
        assert row["restarts"] > 0
        assert row["neighbour_bytes"] > 0 or row["neighbours"] == "busy"
    assert hardware_sample.claim(rows).verdict == "reached"
    for change in ({"deviation_cycles": -1}, {"same_bytes": False}, {"same_counters": False}, {"errors": 1}):
        assert hardware_sample.claim([*rows, rows[0] | change]).verdict == "missed"


def test_experiment(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_sample, "compiled", lambda config: False)
    outcome = run(lab, lambda what, share: None)
    assert [claim.verdict for claim in outcome.claims] == ["reached", "reached", "open"]
    data = json.loads(json.dumps(plain(outcome.data)))
    assert len(data["runs"]) == 4 * 5
    assert all(row["deviation_cycles"] == 0 and row["instructions"] > 0 for row in data["runs"])
    again = run(lab, lambda what, share: None)
    assert plain(again.data) == plain(outcome.data)  # all from the seed
