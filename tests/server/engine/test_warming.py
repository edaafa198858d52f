"""What the first inference would have to compile is there when a model's loading returns.

A process of its own looks, since other tests have compiled much already.
"""

import subprocess
import sys
from pathlib import Path

from support.engine import Net

SCRIPT = """
import sys
from pathlib import Path
import numba

sys.path.insert(0, sys.argv[1])
from corepool.config import preset
from corepool.server.api import LeaseRequest
from support.engine import Net, World, who

config = preset(sys.argv[4])
world = World(Path(sys.argv[2]), Net(config, Path(sys.argv[3])))
assert world.engine.warming.state.value == "cold"
world.load("ann")
assert world.engine.warming.state.value == "warm"

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("corepool.")]
    found = {}
    for module in modules:
        for name, thing in vars(module).items():
            if isinstance(thing, numba.core.dispatcher.Dispatcher):
                found[thing.py_func.__module__, thing.py_func.__name__] = len(thing.signatures)
    return found

before = compiled()
assert sum(before.values()) > 10, before
world.infer()
world.engine.create_lease(who("ann"), LeaseRequest("two", 2, 2))
world.infer(lease="two")
after = compiled()
new = {name: count for name, count in after.items() if count != before.get(name, 0)}
assert not new, new
world.close()
"""


def check(net: Net, folder: Path) -> None:
    tests = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", SCRIPT, str(tests), str(folder), str(net.path), net.config.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr


def test_a_first_inference_compiles_nothing(nets: dict[str, Net], tmp_path: Path) -> None:
    check(nets["tiny"], tmp_path / "state")
