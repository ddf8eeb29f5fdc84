"""The report of a monitored run, read back from its one file."""

import base64
import gzip
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from plotly.offline import get_plotlyjs

from fg_lightning import FullGradMonitor
from fg_lightning.cli.main import main
from fg_lightning.report import write_report
from fg_lightning.report.figures import Line, layer_figure, line_figure, log_ticks
from fg_lightning.report.image_encoding import (
    ENCODINGS,
    Encoding,
    choose_encoding,
    colour_levels,
    encode_maps,
    encode_picture,
    palette,
)
from fg_lightning.visualization.saliency_overlay import enlarge, overlay_rgb, to_rgb
from tests.helpers.small_trainings import Classifier, loader, trainer
from tests.helpers.written_runs import Page, decoded, run


def overlaid_by_page(page, picture, level, strength):
    """What a browser makes of a level: a colour with its own opacity, times the layer's, over grey."""
    table = np.array(page.data()["methods"][0]["palette"], dtype=float)[level]
    opacity = strength * table[..., 3:] / 255
    grey = picture.mean(-1, keepdims=True)
    return (1 - opacity) * grey + opacity * table[..., :3]


@pytest.mark.parametrize("signed", [False, True])
def test_image_and_map_are_layers_that_add_up_to_the_overlay(tmp_path, signed):
    maps = run(tmp_path, num_snapshots=2, signed=signed)
    page = Page(write_report(tmp_path))
    picture = np.asarray(Image.open(tmp_path / "probe" / "003.png"))
    for strength in (0.3, 0.7):
        seen = overlaid_by_page(page, picture, page.tiles("maps-1", 5)[3], strength)
        expected = overlay_rgb(picture, maps[1][3].half(), strength=strength)
        # one level of 256 from the float16 on disk, and rounding
        assert np.abs(enlarge(seen.round().astype(np.uint8)).astype(int) - expected).max() <= 3


def test_every_map_of_every_snapshot_is_there_without_loss(written):
    _, maps, page = written
    assert [name for name in page.scripts if str(name).startswith("maps-")] == ["maps-0", "maps-1", "maps-2", "maps-3"]
    for index in range(4):
        tiles = page.tiles(f"maps-{index}", 5)
        expected = np.stack([colour_levels(values.numpy(), is_signed=False) for values in maps[index][:, 0]])
        assert np.abs(tiles.astype(int) - expected).max() <= 1  # float16 on disk


def test_maps_of_one_colour_are_named_for_their_method(tmp_path):
    run(tmp_path)
    entries = np.load(tmp_path / "maps.npy")
    entries[2, 1], entries[2, 3], entries[1] = 0, 0.5, np.nan
    np.save(tmp_path / "maps.npy", entries)
    flat = [snapshot["flat"] for snapshot in Page(write_report(tmp_path)).data()["snapshots"]]
    assert flat == [{}, {}, {"fullgrad": {"1": "all zero", "3": "constant"}}, {}]


def test_the_images_are_there_as_they_were_and_are_named(written):
    folder, _, page = written
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [image["alt"] for image in images] == [
        f"image {i}, label {name}" for i, name in enumerate(["cat", "dog", "bird", "cat", "dog"])
    ]
    for i, image in enumerate(images):
        content = image["src"].removeprefix("data:image/webp;base64,")
        assert (decoded(content) == np.asarray(Image.open(folder / "probe" / f"{i:03d}.png"))).all()


def test_what_is_known_of_an_image(written):
    folder, _, page = written
    data = page.data()
    assert [snapshot["title"] for snapshot in data["snapshots"]] == ["untrained", "epoch 1", "epoch 2", "epoch 3"]
    first = data["images"][0][0]
    assert (first["label"], first["explained"], first["right"]) == ("cat", "cat", False)
    last = data["images"][3][1]
    assert (last["label"], last["right"]) == ("dog", True)
    assert re.fullmatch(r"dog · \d+ %", last["prediction"])
    row = (folder / "images.csv").read_text().splitlines()[-4].split(",")
    assert last["terms"] == pytest.approx([float(cell) for cell in row[6:11]], rel=1e-4)
    assert data["layers"][3][1] == {"name": "layer.0", "kind": "explicit", "share": 0.5}


def test_curves_are_those_of_the_history(written):
    figures = written[2].data("figures")
    assert {"completeness", "shares", "drift", "concentration", "layers"} <= set(figures)
    assert figures["completeness"]["layout"]["yaxis"]["type"] == "log"
    mean, largest = figures["completeness"]["data"]
    assert (mean["name"], mean["x"], mean["y"]) == ("mean", [0, 1, 2, 3], pytest.approx([0.1, 0.2, 0.3, 0.4]))
    assert largest["y"] == pytest.approx([0.01, 0.02, 0.03, 0.04])
    since = figures["drift"]["data"][0]["y"]
    assert since[0] is None
    assert since[1:] == pytest.approx([2e-6, 3e-6, 4e-6])
    assert figures["layers"]["data"][0]["z"] == [[0.5] * 4, [0.5] * 4, [pytest.approx(-1 / 3, abs=1e-4)] * 4]


def test_what_cannot_lie_on_a_logarithmic_axis_is_left_out():
    figure = line_figure("a", "A", [Line("q", [0, 1, 2], [0.0, 0.5, None], 0)], xlabel="epoch", log_scale=True)
    assert figure.content["data"][0]["y"] == [None, 0.5, None]
    assert "q from 0 to 0.5" in figure.summary


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([3e-7, None, 2e-6], ["2e-7", "5e-7", "1e-6", "2e-6"]),
        ([3.2], ["2", "5"]),
        ([1e-8, 0.0, 0.5], ["1e-8", "1e-7", "1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]),
        ([1e-20, 1.0], ["1e-18", "1e-15", "1e-12", "1e-9", "1e-6", "0.001", "1"]),
        ([0.0, None], []),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_whole_numbers(values, ticks):
    found = log_ticks(values)
    assert list(found.values()) == ticks
    assert [float(words) for words in ticks] == list(found)


@pytest.mark.parametrize(("largest", "is_told"), [(0.5, False), (5.0, True)])
def test_a_share_beyond_the_colours_is_told(largest, is_told):
    figure = layer_figure(list("abcd"), ["untrained"], np.array([[largest], [0.5], [-0.5], [0.5]]))
    assert ("The darkest colours stand for larger shares, too." in figure.meaning) == is_told
    assert figure.content["data"][0]["colorbar"]["title"]["text"] == "share of the output"


@pytest.mark.parametrize(("last", "tick"), [(2, 1), (10, 1), (40, None)])
def test_few_epochs_have_no_tick_between_them(last, tick):
    figure = line_figure("a", "A", [Line("q", [0, last], [1.0, 2.0], 0)], xlabel="epoch")
    assert figure.content["layout"]["xaxis"].get("dtick") == tick


def test_nothing_is_asked_of_a_network(written):
    folder, _, page = written
    for _, attributes in page.elements:
        for name in ("src", "srcset", "action", "data"):
            assert not attributes.get(name) or attributes[name].startswith("data:")
    assert {tag for tag, attributes in page.elements if "href" in attributes} <= {"a", "link"}  # an address is opened by a click
    styles = re.findall(r"url\(|@import", (folder / "report.html").read_text().split("</style>")[0])
    assert styles == []
    assert gzip.decompress(base64.b64decode(page.scripts["plotly"])).decode() == get_plotlyjs()
    assert (folder / "report.html").stat().st_size < 3e6


def test_a_screen_reader_is_told_what_there_is(written):
    page = written[2]
    for tag, attributes in page.elements:
        if tag == "img":
            assert attributes["alt"]
        if tag == "canvas":
            assert attributes.get("aria-hidden") or attributes.get("role") == "img"
        if attributes.get("class") == "figure":
            assert re.search(r"from .* to .*between|largest at", attributes["aria-label"])
    labelled = {attributes["for"] for tag, attributes in page.elements if tag == "label"}
    assert {attributes["id"] for tag, attributes in page.elements if tag == "input"} == labelled
    assert page.elements[0] == ("html", {"lang": "en"})


def test_words_of_a_user_stay_words(tmp_path):
    evil = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "\"'&lt;{{ 7*7 }}"]
    folder = tmp_path / "<b>run&" / "fullgrad"
    run(folder, names=evil)
    page = Page(write_report(folder))
    assert "<b>run&" in page.words
    assert not any("onerror" in attributes or tag == "b" for tag, attributes in page.elements)
    assert not any("alert(1)" in content for name, content in page.scripts.items() if name != "data")
    assert page.data()["images"][1][0]["label"] == evil[0]
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert alts[1:3] == [f"image 1, label {evil[1]}", f"image 2, label {evil[2]}"]


def test_what_the_layers_add_to_each_image_is_there_in_16_bits(tmp_path):
    monitor = FullGradMonitor(num_samples=4, strict=True)
    trainer(tmp_path, monitor).fit(Classifier(), loader(seed=1), loader(16, seed=2))
    path = write_report(tmp_path)
    page = Page(path)
    attributes = next(attributes for _, attributes in page.elements if attributes.get("id") == "terms-2")
    terms = np.frombuffer(base64.b64decode(page.scripts["terms-2"]), "<i2").reshape(-1, 4) * float(attributes["data-scale"])
    rows = monitor.history.layers(2)
    expected = np.array([row.terms for row in rows])
    assert np.abs(terms - expected).max() <= np.abs(expected).max() / 32767
    outputs = [image["terms"][0] for image in page.data()["images"][2]]
    assert terms.sum(0) == pytest.approx(outputs, abs=1e-3)


# --- in few bytes


def test_maps_that_take_too_much_are_reduced_and_it_is_said(tmp_path, monkeypatch):
    maps = run(tmp_path, num_snapshots=3, n=4, size=128)
    monkeypatch.setattr("fg_lightning.report.run_content.BUDGET", 4_000)
    page = Page(write_report(tmp_path))
    said = re.search(r"Maps are reduced from 128 by 128 to (\d+) by \1, in 8 bits, WebP quality \d+", page.words)
    side = int(said[1])
    assert side < 128
    tiles = page.tiles("maps-2", 4).astype(float)
    expected = np.stack([colour_levels(values.numpy(), is_signed=False) for values in maps[2][:, 0]]).astype(float)
    enlarged_back = [np.asarray(Image.fromarray(tile).resize((128, 128), Image.Resampling.BILINEAR)) for tile in tiles]
    assert np.abs(np.stack(enlarged_back) - expected).mean() < 8  # of 255


def test_the_best_encoding_that_fits_is_taken():
    asked = []

    def sized(snapshot, encoding):
        asked.append(encoding)
        return b"0" * (1000 if encoding == ENCODINGS[0] else 100)

    assert choose_encoding(range(10), sized, budget=10_000) == ENCODINGS[0]
    assert choose_encoding(range(10), sized, budget=9_999) == ENCODINGS[1]
    assert choose_encoding(range(10), sized, budget=10) == ENCODINGS[-1]
    assert choose_encoding([], sized, budget=10) == ENCODINGS[0]


def test_maps_of_any_shape_make_a_sprite():
    maps = np.random.default_rng(0).random((7, 5, 9)).astype(np.float32)
    picture = decoded(base64.b64encode(encode_maps(maps, Encoding(), is_signed=False)))
    assert picture.shape == (3 * 5, 3 * 9, 3)
    assert (picture[5:10, 9:18, 0] == colour_levels(maps[4], is_signed=False)).all()
    assert Encoding(4, 50).size(5, 9) == (2, 4)


def test_large_pictures_are_reduced():
    picture = Image.fromarray(np.asarray(to_rgb(torch.rand(3, 600, 900))))
    assert decoded(base64.b64encode(encode_picture(picture))).shape == (299, 448, 3)


def test_opacity_falls_to_half_where_saliency_is_lowest():
    assert [palette(is_signed=False)[i][3] for i in (0, 255)] == [128, 255]
    assert [palette(is_signed=True)[i][3] for i in (0, 255)] == [255, 255]
    assert palette(is_signed=True)[127][3] == pytest.approx(128, abs=1)


# --- how the user gets one


def test_the_command_says_where_it_lies(tmp_path, capsys):
    run(tmp_path / "fullgrad")
    main(["report", str(tmp_path), "--output", str(tmp_path / "r.html")])
    printed = capsys.readouterr().out
    assert re.search(r"report  .*r\.html \(2\.\d MB\)", printed)
    assert (tmp_path / "r.html").is_file()
    with pytest.raises(SystemExit, match=r"fg-lightning: .* does not exist"):
        main(["report", str(tmp_path / "nowhere")])


def test_a_monitor_writes_it_at_the_end_if_asked(tmp_path):
    monitor = FullGradMonitor(num_samples=4, report=True, animation=True, strict=True)
    trainer(tmp_path, monitor).fit(Classifier(), loader(seed=1), loader(16, seed=2))
    folder = tmp_path / "fullgrad" / "version_0"
    page = Page(folder / "report.html")
    assert len(page.data()["snapshots"]) == 3
    assert not any(attributes.get("role") == "note" for _, attributes in page.elements)
    with Image.open(folder / "animation.gif") as picture:
        assert picture.n_frames == 3
    with pytest.raises(TypeError, match="report must be True or False, not 'yes'"):
        FullGradMonitor(report="yes")


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("fg_lightning.report.write_report", full)
    with pytest.warns(UserWarning, match="no space left on device .*training continues"):
        trainer(tmp_path, FullGradMonitor(num_samples=4, report=True)).fit(Classifier(), loader(seed=1), loader(16, seed=2))
    assert not list(tmp_path.rglob("report.html"))
    trainer(tmp_path / "without", FullGradMonitor(num_samples=4)).fit(Classifier(), loader(seed=1), loader(16, seed=2))
    assert not list((tmp_path / "without").rglob("*.gif"))


# --- findings, masks, links


def test_findings_link_to_the_manual_where_its_address_is_known(tmp_path, monkeypatch):
    run(tmp_path)
    heading = "snapshot,finding,method,value,threshold,message,advice,page\n"
    (tmp_path / "findings.csv").write_text(f"{heading}3,border,fullgrad,0.7,0.5,At the border.,Crop.,findings.html#border\n")
    monkeypatch.setattr("fg_lightning.report.manual.manual_address", lambda: "")
    page = Page(write_report(tmp_path))
    assert "Manual: findings.html#border" in page.words
    assert not [attributes for tag, attributes in page.elements if tag == "a"]
    monkeypatch.setattr("fg_lightning.report.manual.manual_address", lambda: "https://example.org/docs")
    links = [attributes["href"] for tag, attributes in Page(write_report(tmp_path)).elements if tag == "a"]
    assert "https://example.org/docs/findings.html#border" in links
    assert "https://example.org/docs/explanation/numbers.html#drift" in links


def test_the_manuals_address_is_the_packages(monkeypatch):
    from email.message import Message

    from fg_lightning.report.manual import manual_address

    about = Message()
    about["Project-URL"] = "Source, https://example.org/code"
    about["Project-URL"] = "Documentation, https://example.org/docs/"
    monkeypatch.setattr("fg_lightning.report.manual.metadata", lambda name: about)
    assert manual_address.__wrapped__() == "https://example.org/docs"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "No check found anything"),
        ("3,corner,fullgrad,0.6,,Words.,Look.,\n3,x", "The last line of findings.csv is incomplete"),
        ("3,corner,fullgrad,much,,Words.,Look.,\n", "1 of 1 rows of findings.csv are damaged"),
        ("3,corner,,,,<b>Words & words,Look.,\n", "<b>Words & words"),
    ],
)
def test_findings_are_shown_as_far_as_they_can_be_read(tmp_path, content, expected):
    run(tmp_path)
    (tmp_path / "findings.csv").write_text(f"snapshot,finding,method,value,threshold,message,advice,page\n{content}")
    assert expected in Page(write_report(tmp_path)).words


def test_masks_are_outlined(tmp_path):
    run(tmp_path)
    with np.load(tmp_path / "probe.npz") as arrays:
        masks = np.zeros((5, 1, 12, 12), bool)
        masks[:, :, 3:6, 3:6] = True
        np.savez(tmp_path / "probe.npz", **arrays, masks=masks)
    page = Page(write_report(tmp_path))
    outlines = [attributes for tag, attributes in page.elements if attributes.get("class") == "outline"]
    assert [outline["alt"] for outline in outlines] == ["where the network should look"] * 5
    picture = Image.open(io.BytesIO(base64.b64decode(outlines[0]["src"].partition(",")[2])))
    rows, columns = np.nonzero(np.asarray(picture)[..., 3])
    assert picture.size == (224, 224)
    assert [rows.min() / 224, rows.max() / 224, columns.min() / 224] == pytest.approx([3 / 12, 6 / 12, 3 / 12], abs=0.02)
    (tmp_path / "probe.npz").write_bytes(b"damaged")
    assert not any(attributes.get("class") == "outline" for _, attributes in Page(write_report(tmp_path)).elements)


def test_a_method_whose_files_are_damaged_is_named(tmp_path):
    maps = run(tmp_path)
    for name in ("gradcam", "gradient"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.csv").write_text("snapshot,epoch,step,num_steps,drift\n1,1,10,,0.25\n")
    np.save(tmp_path / "gradcam" / "maps.npy", np.stack([values[:3].numpy() for values in maps]))
    page = Page(write_report(tmp_path))
    assert "gradcam/maps.npy is damaged: this method is shown without maps (expected maps" in page.words
    assert "gradient/maps.npy is missing" in page.words
    assert page.data()["snapshots"][1]["numbers"]["gradcam/drift"] == 0.25
    lines = page.data("figures")["drift"]["data"]
    assert [line["name"] for line in lines if "gradient" in line["name"]] == ["gradient: since the snapshot before"]


def test_snapshots_within_an_epoch_lie_at_their_steps(tmp_path):
    run(tmp_path)
    lines = (tmp_path / "history.csv").read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace("2,2,20,", "2,1,20,")
    (tmp_path / "history.csv").write_text("".join(lines))
    page = Page(write_report(tmp_path))
    assert [snapshot["title"] for snapshot in page.data()["snapshots"]] == ["untrained", "step 10", "step 20", "step 30"]
    assert page.data("figures")["concentration"]["data"][0]["x"] == [0, 10, 20, 30]
    assert page.data()["snapshots"][2]["moment"] == "step 20, epoch 1"
