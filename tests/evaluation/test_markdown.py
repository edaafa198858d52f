"""The table of claims as Markdown: whole, escaped, and put between marks only."""

from pathlib import Path

import pytest

from corepool.errors import ConfigError
from corepool.evaluation.markdown import BEGIN, END, insert, render, split
from corepool.evaluation.results import Claim, Finding, Outcome

PROVENANCE = {
    "commit": "0123456789abcdef",
    "changed_since": False,
    "config": {"name": "u200", "fingerprint": "f"},
    "seed": 7,
    "quick": True,
}


def finding(name: str, *claims: Claim) -> Finding:
    return Finding(name, "A title", "A question?", Outcome({}, claims=list(claims)), PROVENANCE)


def claim(text: str, verdict: str = "reached") -> Claim:
    return Claim(text, "a paper", ">= 2|x", "3x", verdict)


def test_every_claim_has_a_row() -> None:
    text = render([finding("one", claim("first"), claim("second", "missed")), finding("two", claim("third"))], "again")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[1] for row in rows] == ["first", "second", "third"]
    assert rows[0].startswith("| one |")
    assert rows[1].startswith("|  | second")
    assert rows[1].endswith("missed |")
    assert "0123456789ab" in text
    assert "0123456789abc" not in text
    assert "a quick look" in text


def test_bars_in_cells_do_not_make_columns() -> None:
    row = render([finding("one", claim("first"))], "again").splitlines()[2]
    assert row.replace("\\|", "").count("|") == 6


def test_only_what_stands_between_the_marks_changes(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    insert(document, "new\n")
    insert(document, "newer\n")
    assert document.read_text(encoding="utf-8") == f"before\n{BEGIN}\nnewer\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}"])
def test_missing_marks_are_named(tmp_path: Path, text: str) -> None:
    document = tmp_path / "README.md"
    document.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="no lines"):
        split(document)
    with pytest.raises(ConfigError, match="cannot be read"):
        split(tmp_path / "absent.md")


def test_the_short_table_has_main_claims_only() -> None:
    main = Claim("second", "a paper", "2x", "3x", "reached", main=True)
    text = render([finding("one", claim("first"), main), finding("two", claim("third"))], "again", main=True)
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == ["| one | second | 2x | 3x | reached |"]
