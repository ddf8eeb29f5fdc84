"""fg-lightning cite: the bibliography is BibTeX, knows every name it should, and says what it knows about unknown ones."""

from __future__ import annotations

import re

import pytest
import yaml

import fg_lightning
from fg_lightning.attribution import METHODS
from fg_lightning.cli.cite import find_references, list_names, read_references
from fg_lightning.cli.main import main
from tests import ROOT

ARXIV = {
    "fullgrad": "1905.00780",
    "roar": "1806.10758",
    "road": "2202.00449",
    "vargrad": "1810.03307",
    "parameter_randomization": "1810.03292",
    "smoothgrad": "1706.03825",
    "gradcam": "1610.02391",
    "integrated_gradients": "1703.01365",
    "guided_backprop": "1412.6806",
    "gradient": "1312.6034",
    "input_x_gradient": "1605.01713",
    "blurred_random": "2304.13836",
    "libragrad": "2411.16760",
    "fashion_mnist": "1708.07747",
    "captum": "2009.07896",
    "block_mnist": "2102.12781",
    "pointing_game": "1608.00507",
    "relevance_mass": "2003.07258",
}

NEEDED = {
    "article": {"author", "title", "journal", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "techreport": {"author", "title", "institution", "year"},
    "misc": {"author", "title"},
}
"""The fields that BibTeX's standard styles ask for."""


def parse(entry):
    """Kind, key and fields of an entry, by counting braces."""
    kind, key, body = re.fullmatch(r"@(\w+)\{(\w+),\n(.*)\n\}", entry, re.DOTALL).groups()
    fields = {}
    while body:
        name, body = re.match(r"\s*(\w+) = \{(.*)", body, re.DOTALL).groups()
        depth, end = 1, 0
        while depth:
            depth += {"{": 1, "}": -1}.get(body[end], 0)
            end += 1
        fields[name], body = body[: end - 1], body[end:].lstrip(",\n")
    return kind, key, fields


def cited(capsys, *words):
    main(["cite", *words])
    return capsys.readouterr().out.strip().split("\n\n")


def test_every_entry_is_bibtex_with_the_fields_of_its_kind():
    parsed = [parse(entry) for entry in read_references()]
    assert len({key for _, key, _ in parsed}) == len(parsed) > 20
    for kind, key, fields in parsed:
        assert NEEDED[kind] <= fields.keys(), key
        assert all(value.isascii() and value.strip() == value for value in fields.values()), key
        assert "&" not in "".join(fields.values()), key
        if "year" in fields:
            assert key.startswith(re.sub(r"\W", "", fields["author"].split(",")[0]).lower() + fields["year"])
        if "eprint" in fields:
            assert re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"])
            assert fields["archiveprefix"] == "arXiv"


@pytest.mark.parametrize(("name", "number"), ARXIV.items())
def test_a_name_leads_to_its_paper(name, number, capsys):
    assert number in {parse(entry)[2].get("eprint") for entry in cited(capsys, name)}


def test_every_method_and_fill_has_a_reference():
    assert set(METHODS) | {"noisy_linear", "roar", "kar", "road"} <= set(list_names())


def test_without_a_name_everything_is_printed(capsys):
    assert cited(capsys) == list(read_references()) == find_references([])


def test_several_names_are_several_entries_each_once(capsys):
    keys = [parse(entry)[1] for entry in cited(capsys, "roar", "fullgrad", "simple_fullgrad", "Fashion-MNIST")]
    assert keys == ["srinivas2019fullgrad", "hooker2019benchmark", "xiao2017fashion"]
    assert [parse(entry)[1] for entry in cited(capsys, "--names", "roar,CIFAR100")] == [
        "hooker2019benchmark",
        "krizhevsky2009learning",
    ]
    assert len(cited(capsys, "smooth_fullgrad")) == 2  # FullGrad and SmoothGrad


def test_this_package_is_cited_with_its_version_and_without_invented_people(capsys):
    (entry,) = cited(capsys, "fg-lightning")
    fields = parse(entry)[2]
    assert fields["note"] == f"Version {fg_lightning.__version__}"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == fg_lightning.__version__
    assert fields["author"] == "{" + citation["authors"][0]["name"] + "}" == "{The fg-lightning developers}"
    assert fields["title"].replace("{", "").replace("}", "") == citation["title"]


def test_the_page_names_every_paper_with_its_names():
    rows = (ROOT / "docs/reference/references.md").read_text().splitlines()
    for entry, keywords in read_references().items():
        names = ", ".join(f"`{keyword}`" for keyword in keywords)
        (row,) = [row for row in rows if row.startswith(f"| {names} |")]
        fields = parse(entry)[2]
        assert re.sub(r"\s+", " ", re.sub(r"[{}]", "", fields["title"])) in row
        assert fields.get("eprint", "") in row


def test_an_unknown_name_is_one_sentence_with_the_names_that_exist():
    with pytest.raises(SystemExit, match=r"no reference is known for 'fulgrad' \(did you mean fullgrad\?\); known names are"):
        main(["cite", "fulgrad"])
    with pytest.raises(SystemExit, match=r"no reference is known for 'zzzz'; known names are"):
        main(["cite", "roar", "zzzz"])
