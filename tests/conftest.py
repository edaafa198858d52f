"""Settings and fixtures for all tests.

It must not know any part of the package, so that a broken part fails its own tests only.
"""

import os
import signal
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("MPLBACKEND", "Agg")  # pictures are drawn without a screen

# Shells start background jobs with SIGINT ignored, which children inherit: tests of interruption need the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run; compiled kernels make first calls slow, so a deadline per example would be noise.
settings.register_profile(
    "corepool", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("corepool")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's own name only, not on order or worker."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))
