"""Tables and facts at every width: no number is cut or folded, no line is too long, no name plays tricks.

It must not know what commands show.
"""

import pytest

from corepool.cli import output

WIDTHS = (20, 36, 50, 60, 80, 200)
NUMBERS = (("3,114,567", "0.01038", "96,339", "1.000"), ("812,345", "0.006047", "165,380", "12.70"))


def rendered(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, *things: object) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    output.show(*things)
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= width
    return text


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_and_their_names_stay_whole(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ("layer", "cycles", "latency ms", "frames/s", "speed-up")
    names = ("/features/features.12/conv/conv.0/Conv_quant_fused", "head")
    rows = [(name, *row) for name, row in zip(names, NUMBERS, strict=True)]
    text = rendered(capsys, monkeypatch, width, output.table("what it takes", columns, rows))
    words = text.split()
    for number in (*NUMBERS[0], *NUMBERS[1]):
        assert words.count(number) == 1
    assert {word for column in columns for word in column.split()} <= set(words)
    assert "head" in words
    if width >= 80:
        assert "latency ms" in text.splitlines()[2]


@pytest.mark.parametrize("width", WIDTHS)
def test_facts_keep_their_numbers(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = {"dynamic compilation": "0.168 ms", "cycles": "1,234,567 (predicted 1,234,568)", "frames": 165745}
    words = rendered(capsys, monkeypatch, width, output.facts("a network", pairs)).split()
    assert {"0.168", "1,234,567", "1,234,568)", "165,745", "dynamic", "compilation"} <= set(words)


def test_tables_are_tables_where_there_is_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = output.table("t", ("cores", "p50 ms"), [(1, 0.5), (16, 0.25)])
    assert rendered(capsys, monkeypatch, 24, made).split("\n")[2:] == [
        " cores   p50 ms",
        " ──────────────",
        " 1       0.5000",
        " 16      0.2500",
        "",
        "",
    ]
    assert rendered(capsys, monkeypatch, 14, made).split() == [
        "t", "cores", "1", "p50", "ms", "0.5000", "cores", "16", "p50", "ms", "0.2500",
    ]  # fmt: skip


def test_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "a\x1b[2Jb\nc\u202ed\x07\x9b"
    spelt = "a\\x1b[2Jb\\nc\\u202ed\\x07\\x9b"
    text = rendered(
        capsys, monkeypatch, 80,
        output.table(evil, ("x", "y"), [(evil, 1)]), output.facts(evil, {"name": evil, "many": [evil, "z"]}),
    )  # fmt: skip
    assert text.count(spelt) == 5
    output.write(evil)
    assert capsys.readouterr().out == spelt.replace("\\n", "\n") + "\n"
    output.write_json({evil: evil})
    assert "\x1b" not in capsys.readouterr().out
