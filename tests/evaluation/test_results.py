"""Results as files and as a report: nothing lost, nothing loaded from elsewhere, nothing taken for markup.

It must not know any experiment.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from corepool.config import preset
from corepool.evaluation.report import cell, render
from corepool.evaluation.results import VERDICTS, Claim, Finding, Outcome, Plot, Table, jain, plain, provenance

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d4944415478da63fcffff3f030005fe02fea72d"
    "99cd0000000049454e44ae426082"
)


@pytest.fixture
def finding() -> Finding:
    outcome = Outcome(
        data={"a": np.arange(3), "b": {1: math.nan}},
        tables=[Table("Rates <of> all", ("name", "x"), [("one & two", 1.5), ("none", None)], "a note")],
        plots=[Plot("some.png", "what to see", PIXEL)],
        claims=[Claim("faster", "a paper", "1x", "2x", "beaten", "since <b>")],
        notes=["A remark."],
    )
    return Finding(
        "some",
        "Some title",
        "Why?",
        outcome,
        provenance(preset("u200"), 7, True, {"seconds": 1.25, "cpu_seconds": 2.5}),
    )


def test_files(finding: Finding, tmp_path: Path) -> None:
    finding.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.json", "some.png"]
    assert (tmp_path / "some.png").read_bytes() == PIXEL
    read = json.loads((tmp_path / "some.json").read_text())
    assert read["data"] == {"a": [0, 1, 2], "b": {"1": None}}
    assert read["claims"][0] == {
        "claim": "faster",
        "source": "a paper",
        "theirs": "1x",
        "ours": "2x",
        "verdict": "beaten",
        "reason": "since <b>",
        "main": False,
    }
    origin = read["provenance"]
    assert (origin["seed"], origin["quick"], origin["seconds"]) == (7, True, 1.25)
    assert origin["config"]["fingerprint"] == preset("u200").fingerprint()
    assert {"corepool", "python", "numpy", "numba"} <= set(origin["versions"])
    assert origin["commit"]


def test_report_stands_alone(finding: Finding) -> None:
    text = render([finding], "corepool evaluate some")
    assert re.findall(r"(?:src|href)='([^']{0,11})", text) == ["#some", "#some", "data:image/"]
    assert "http" not in text
    assert "url(" not in text
    assert "since &lt;b&gt;" in text
    assert "<b>2x</b>" in text
    assert "Rates &lt;of&gt; all" in text
    assert "one &amp; two" in text
    assert "verdict beaten" in text
    assert "corepool evaluate some" in text


def test_every_verdict_has_a_colour(finding: Finding) -> None:
    style = render([finding], "").split("</style>")[0]
    assert all(f".{verdict}" in style for verdict in VERDICTS)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (math.inf, "-"), (1234567, "1,234,567"), (0.012345, "0.0123"), (1234.5, "1,234"), (True, "yes")],
)
def test_cell(value: object, text: str) -> None:
    assert cell(value) == text


def test_fairness() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([0, 0]) == 1


def test_plain_keeps_what_json_knows() -> None:
    assert plain({"x": (1, 2.5, None, "s", np.float64(3), np.int64(4))}) == {"x": [1, 2.5, None, "s", 3.0, 4]}


def test_a_claim_stands_where_its_source_belongs() -> None:
    """Goals of this project are not listed as what others reached, nor are the paper's claims."""
    from corepool.evaluation.lab import Lab
    from corepool.evaluation.report import _KINDS, _kind
    from corepool.evaluation.resources import run

    kinds = {claim.claim: _kind(claim) for claim in run(Lab(Path()), lambda what, share: None).claims}
    pool = next(name for name in kinds if name.startswith("A pool of 16 cores"))
    assert kinds.pop(pool) == _KINDS[0]
    assert kinds["DSP blocks of a core of u200"] == _KINDS[1]
    assert kinds["A core of 256 MACs beside the vendor's"] == _KINDS[2]
    assert sorted(kinds.values()).count(_KINDS[2]) == 2, "the vendor's two"
