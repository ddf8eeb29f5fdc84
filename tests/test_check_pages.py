"""The checker of words and links finds what it should, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.check_pages import WORDS, anchors, find_faults, main

STUMBLES = [
    "what it does to a training: nothing",
    "`probe` and `forward`, which no text can say",
    "What was explained once is explained to the end",
    "Every look but the last is at the weights",
    "taken as they come by",
    "It warns once and says so.",
    "has shown nothing but that its masks are smooth",
    "another network takes another folder",
    "what there is is shown",
    "or a function of yours",
    "Somebody reads this.",
    "or a function of yours whatever it says",
    "they are looked at on",
    "The monitor stands\nback.",
]

PLAIN = """# The monitor

It does not affect training. Invalid options are reported when the Trainer is created. To change the network, use a new folder.
Look at the maps. What is public stands in `__all__`. Say what is wrong, and what to do. All but the final snapshot use raw weights.

```python
nothing_but = "nothing but"  # somebody's code
```
"""


@pytest.mark.parametrize("sentence", STUMBLES)
def test_a_sentence_to_avoid_is_found_with_advice(tmp_path: Path, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{sentence}\n")
    assert main([str(page)]) == 1
    printed = capsys.readouterr().out
    assert f"{page}:3: " in printed
    assert any(advice in printed for advice in WORDS.values())


def test_plain_sentences_and_code_pass(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PLAIN)
    assert list(find_faults(page)) == []


def test_links_to_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# What a `map` costs\n\n## In numbers\n\n## In numbers\n\n<a id='here'></a>\n")
    assert anchors(tmp_path / "other.md") == {"what-a-map-costs", "in-numbers", "in-numbers_1", "here"}
    page = tmp_path / "page.md"
    right = "[a](other.md) [b](other.md#what-a-map-costs) [c](#top) [d](https://a.org/x) ![e](other.md#here) [f](other.md#pkg.Name)"
    page.write_text(f"# Top\n\n{right}\n`[g](none.md)`\n")
    assert list(find_faults(page)) == []
    page.write_text("# Top\n\n[a](none.md) [b](other.md#none)\n![c](none.png)\n[d](#none)\n")
    faults = [fault.split(": the link leads to ")[1] for fault in find_faults(page)]
    assert faults == [
        "none.md, which does not exist",
        "other.md#none, but other.md has no such heading",
        "none.png, which does not exist",
        "#none, but this page has no such heading",
    ]
