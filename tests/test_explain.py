"""fg-lightning explain on pictures and networks of every kind that it takes."""

from __future__ import annotations

import csv
import errno
import os
import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import skimage.data
import torch
from lightning.pytorch import Trainer
from matplotlib.image import imread
from PIL import Image
from scipy.stats import ttest_rel
from torch import Tensor, nn
from torchvision.transforms import v2

from fg_lightning.attribution import METHODS, method_from
from fg_lightning.cli.explain import explain
from fg_lightning.cli.main import main
from fg_lightning.demo import DigitClassifier
from fg_lightning.errors import CannotRun
from fg_lightning.explain import PerturbationCurves
from fg_lightning.explain.load_network import from_torchvision, is_import_path, picture_transform, read_last_normalization
from fg_lightning.explain.perturbation_curves import measure_perturbation
from fg_lightning.explain.pictures import find_pictures, read_picture
from fg_lightning.metrics import pixel_perturbation
from fg_lightning.visualization import Normalization
from fg_lightning.visualization.image_grids import comparison

NETWORKS = """
import torch
from torch import nn
from torchvision.transforms import v2

def colours():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

ready = colours()

def one_output():
    return nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(0))

def dense():
    return nn.Conv2d(3, 5, 3)

def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))

def tiny(picture):
    return torch.full((3, 8, 8), picture.size[0] / 1000)

def numbers(picture):
    return [1, 2]

composed = v2.Compose([
    v2.PILToTensor(), v2.Resize((8, 8)), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)
])

def hidden(picture):
    return composed(picture)

def failing():
    raise OSError("weights.pt is missing")

seven = 7

def turned(images, mask):
    return torch.where(mask, -images, images)
"""


@pytest.fixture
def photos() -> Path:
    """Two photographs of different sizes in the current folder, which is the test's own, with a module of networks."""
    folder = Path("photos")
    folder.mkdir()
    Image.fromarray(skimage.data.chelsea()).save(folder / "chelsea.png")
    Image.fromarray(skimage.data.camera()).save(folder / "camera.jpg")
    (folder / "notes.txt").write_text("no picture")
    Path("networks_of_a_user.py").write_text(NETWORKS)
    return folder


def table(path: str = "fg_explain/predictions.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def run(*arguments: str) -> None:
    main(["explain", *arguments, "--size", "32", "--device", "cpu"])


NET = ("--model", "networks_of_a_user.colours")

# --- what comes out --------------------------------------------------------------------------------------------------------------


def test_it_writes_overlays_and_a_table_and_says_where(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(str(photos), *NET, "--methods", "gradient,fullgrad")
    overlays = sorted(Path("fg_explain/overlays").iterdir())
    assert [path.name for path in overlays] == ["camera.png", "chelsea.png"]
    height, width = imread(overlays[0]).shape[:2]
    assert width > 3 * 128  # the image and two maps of 32 pixels, each of them enlarged four times
    assert height > 128
    printed = capsys.readouterr().out
    assert "fg_explain/overlays  (2 of 2 pictures)" in printed
    assert "fg_explain/predictions.csv" in printed

    rows = table()
    assert [row["picture"] for row in rows] == ["photos/camera.jpg", "photos/chelsea.png"]
    assert all(row["predicted"] == row["explained"] for row in rows)
    assert all(0.2 <= float(row["predicted_probability"]) <= 1 for row in rows)  # the largest of five


def test_what_is_drawn_is_what_the_methods_say(photos: Path) -> None:
    run(str(photos / "chelsea.png"), *NET, "--methods", "[gradient,random]", "--target", "3")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    image = read_picture(photos / "chelsea.png", picture_transform(32, mean, std))
    maps = {name: METHODS[name](model).attribute(image[None], target=3)[0] for name in ("gradient", "random")}
    expected = np.asarray(comparison(image, maps, caption="two\nlines", normalization=Normalization(mean, std)))
    written = np.asarray(Image.open("fg_explain/overlays/chelsea.png"))
    assert expected.shape == written.shape
    assert np.array_equal(expected[:140], written[:140])  # above the captions
    assert table()[0]["explained"] == "3"


def test_perturbation_curves_are_written_as_tables_and_a_figure(photos: Path) -> None:
    run(str(photos), *NET, "--methods", "gradient,random", "--perturb", "morf", "--fractions", "[0.1,0.5]")
    rows = table("fg_explain/perturbation.csv")
    assert list(rows[0]) == ["method", "order", "fill", "fraction", "mean", "standard_error", "num_images"]
    assert [(row["method"], row["fraction"]) for row in rows] == [(m, f) for m in ("gradient", "random") for f in ("0.1", "0.5")]
    assert all((row["order"], row["fill"], row["num_images"]) == ("morf", "black", "2") for row in rows)
    assert all(float(row["mean"]) != 0 for row in rows)
    scores = {row["method"]: row for row in table("fg_explain/perturbation_summary.csv")}
    assert scores["gradient"]["reference"] == "random"
    assert scores["random"]["reference"] == scores["random"]["p"] == ""
    means = {row["fraction"]: float(row["mean"]) for row in rows if row["method"] == "gradient"}
    assert float(scores["gradient"]["area"]) == pytest.approx((means["0.1"] + means["0.5"]) / 2, rel=1e-4)  # six digits are written
    of_images = table("fg_explain/perturbation_images.csv")
    assert list(of_images[0]) == ["picture", "method", "order", "fill", "fraction", "change"]
    for row in rows:
        own = [
            float(each["change"]) for each in of_images if (each["method"], each["fraction"]) == (row["method"], row["fraction"])
        ]
        assert len(own) == 2
        assert float(row["mean"]) == pytest.approx(np.mean(own), rel=1e-4)  # six digits are written
        assert float(row["standard_error"]) == pytest.approx(np.std(own, ddof=1) / 2**0.5, rel=1e-3, abs=1e-5)
    assert imread("fg_explain/perturbation.png").shape[0] > 300
    assert all(Path(f"fg_explain/perturbation.{ending}").stat().st_size > 1000 for ending in ("pdf", "svg"))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

FILLS_OF_PICTURES = {
    "[0.25,0.5,0.75]": [(0.25, 0.5, 0.75)[i] / STD[i] - MEAN[i] / STD[i] for i in range(3)],
    "0.5": [(0.5 - MEAN[i]) / STD[i] for i in range(3)],
    "black": [-MEAN[i] / STD[i] for i in range(3)],
    None: [-MEAN[i] / STD[i] for i in range(3)],
    "image_mean": "image_mean",
    "networks_of_a_user.turned": lambda images, mask: torch.where(mask, -images, images),
}
"""What is given, None for nothing, and the same in the network's own units."""


@pytest.mark.parametrize("fill", FILLS_OF_PICTURES)
def test_a_fill_is_in_the_pictures_own_units(photos: Path, fill: str | None) -> None:
    given = [] if fill is None else ["--fill", fill]
    run(str(photos / "chelsea.png"), *NET, "--methods", "edges", "--perturb", "lerf", "--fractions", "[0.2,0.5]", *given)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    image = read_picture(photos / "chelsea.png", picture_transform(32, MEAN, STD))[None]
    maps = METHODS["edges"](model).attribute(image)
    (changes,) = pixel_perturbation(model, image, maps, fractions=[0.2, 0.5], fill=FILLS_OF_PICTURES[fill]).tolist()
    written = [float(row["mean"]) for row in table("fg_explain/perturbation.csv")]
    assert written == pytest.approx(changes, rel=1e-4)  # float32; six digits are written


def test_the_units_of_a_transform_are_read_from_its_only_normalize_or_said(photos: Path) -> None:
    options = [str(photos / "chelsea.png"), *NET, "--methods", "random", "--perturb", "lerf", "--fractions", "[0.5]"]
    means = []
    for given in (
        ["--transform", "networks_of_a_user.composed"],
        ["--transform", "networks_of_a_user.hidden", "--mean", "[0.5,0.5,0.5]", "--std", "[0.25,0.25,0.25]"],
    ):
        run(*options, *given)
        means.append(table("fg_explain/perturbation.csv")[0]["mean"])
    assert means[0] == means[1]
    run(*options, "--transform", "networks_of_a_user.hidden", "--fill", "image_mean")  # which needs no units
    for fill in ("black", "[0.5,0.5,0.5]"):
        with pytest.raises(SystemExit, match=r"pictures' own units, .* is unknown: give --mean and --std"):
            run(*options, "--transform", "networks_of_a_user.hidden", "--fill", fill)


def test_a_method_that_the_module_of_the_model_registers_is_known(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fg_lightning.attribution.registry.METHODS", dict(METHODS))
    with Path("registers.py").open("w") as file:
        file.write("from fg_lightning.attribution.registry import METHODS\n")
        file.write("from networks_of_a_user import colours\nMETHODS['mine'] = METHODS['gradient']")
    run(str(photos), "--model", "registers.colours", "--methods", "mine,gradient")
    with np.load("fg_explain/maps.npz") as maps:
        assert np.array_equal(maps["mine"], maps["gradient"])


def test_an_import_path_is_no_number_and_no_name() -> None:
    words = ["a.b", "a:b", "my_package.module:name", "black", "0.5", "1e.5", "-1.0", "a.", ".b", "a,b.c"]
    assert [word for word in words if is_import_path(word)] == words[:3]


def test_only_one_normalization_is_taken_for_the_transforms() -> None:
    once, twice = v2.Normalize([0.5], [0.25]), v2.Compose([v2.Normalize([0.5], [0.25]), v2.Normalize([0.1], [0.1])])
    assert read_last_normalization(v2.Compose([v2.Resize(8), v2.Compose([once])])) == Normalization((0.5,), (0.25,))
    assert read_last_normalization(twice) is None
    assert read_last_normalization(lambda picture: once(picture)) is None


def test_dataset_mean_is_that_of_torchvisions_weights(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models

    made = torchvision.models.get_model("squeezenet1_1", weights=None)
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: made)
    network = from_torchvision("squeezenet1_1")
    assert network.dataset_mean == MEAN
    image = network.transform(Image.open(photos / "chelsea.png"))[None]
    curves = measure_perturbation(network, [0.5, 1.0], "lerf", "dataset_mean")
    curves.update("edges", network.model.eval(), image, image.mean(1, keepdim=True), torch.tensor([3]))
    expected = pixel_perturbation(made, image, image.mean(1, keepdim=True), 3, fractions=[0.5, 1.0], fill=0.0)
    assert curves.changes("edges")[0] == pytest.approx(expected[0].numpy(), rel=1e-4)  # float32
    with pytest.raises(CannotRun, match="mean of the training images, which is unknown here; give its numbers"):
        measure_perturbation(from_torchvision("squeezenet1_1", "none"), [0.5], "lerf", "dataset_mean")


@pytest.mark.parametrize("order", ["lerf", "morf"])
def test_scores_are_those_of_plain_formulas(order: str) -> None:
    generator = np.random.default_rng(0)
    changes = {name: generator.normal(mean, 1, (6, 3)) for name, mean in (("random", 1.0), ("fullgrad", 0.0), ("edges", 0.5))}
    curves = PerturbationCurves([0.1, 0.2, 0.5], order, 0.0, reference="fullgrad")
    curves._changes = {name: [torch.from_numpy(values[:4]), torch.from_numpy(values[4:])] for name, values in changes.items()}
    scores = {score.method: score for score in curves.scores(list(changes))}
    areas = {name: [(0.1 * (a + b) / 2 + 0.3 * (b + c) / 2) / 0.4 for a, b, c in values] for name, values in changes.items()}
    assert list(scores) == sorted(areas, key=lambda name: np.mean(areas[name]), reverse=order == "morf")
    tests = {name: ttest_rel(areas[name], areas["fullgrad"]) for name in ("random", "edges")}
    smaller, larger = sorted(tests, key=lambda name: tests[name].pvalue)
    for name, result in tests.items():
        score, interval = scores[name], result.confidence_interval(0.95)
        assert score.area == pytest.approx(np.mean(areas[name]))
        assert score.num_images == 6
        assert score.standard_error == pytest.approx(np.std(areas[name], ddof=1) / 6**0.5)
        assert score.interval_95 == pytest.approx(2.5705818 * np.std(areas[name], ddof=1) / 6**0.5)  # t of 5 degrees of freedom
        assert score.difference == pytest.approx(np.mean(areas[name]) - np.mean(areas["fullgrad"]))
        assert score.difference_interval_95 == pytest.approx((interval.high - interval.low) / 2)
        assert score.p == pytest.approx(result.pvalue)
    assert scores[smaller].p_holm == pytest.approx(min(1, 2 * tests[smaller].pvalue))
    assert scores[larger].p_holm == pytest.approx(max(scores[smaller].p_holm, tests[larger].pvalue))
    assert scores["fullgrad"].reference == ""
    assert np.isnan(scores["fullgrad"].p)


def test_a_single_image_has_no_interval_and_no_p_value(photos: Path) -> None:
    run(str(photos / "chelsea.png"), *NET, "--methods", "edges,random", "--perturb", "lerf", "--fractions", "[0.5]")
    (row, _) = table("fg_explain/perturbation_summary.csv")
    assert row["area"]
    assert row["num_images"] == "1"
    assert row["standard_error"] == row["interval_95"] == row["p"] == row["p_holm"] == ""


def test_maps_are_written_for_numpy_alone(photos: Path) -> None:
    run(str(photos), *NET, "--methods", "gradient,fullgrad", "--target", "2")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    images = torch.stack([read_picture(file, picture_transform(32, MEAN, STD)) for file in find_pictures("photos")])
    with np.load("fg_explain/maps.npz") as written:  # which refuses pickles
        assert written["pictures"].tolist() == ["photos/camera.jpg", "photos/chelsea.png"]
        assert written["targets"].tolist() == [2, 2]
        assert written["methods"].tolist() == ["gradient", "fullgrad"]
        for name in written["methods"]:
            expected = METHODS[str(name)](model).attribute(images, target=2).numpy()
            assert written[str(name)].dtype == np.float32
            np.testing.assert_allclose(written[str(name)], expected, rtol=1e-4, atol=1e-6)  # float32, alone and in a batch
        errors = written["fullgrad_completeness_error"]
    assert errors.shape == (2,)
    assert (errors < 1e-4).all()  # float32
    assert [float(row["fullgrad_completeness_error"]) for row in table()] == pytest.approx(errors.tolist(), rel=0.1)  # two digits


def test_maps_of_pictures_of_several_sizes_are_apart_and_may_be_left_out(photos: Path) -> None:
    Path("sizes.py").write_text("import torch\ndef shrink(picture):\n    return torch.ones(3, 8, picture.size[0] // 50)\n")
    run(str(photos), *NET, "--methods", "edges", "--transform", "sizes.shrink")
    with np.load("fg_explain/maps.npz") as written:
        assert [written[f"edges/{i}"].shape for i in range(2)] == [(1, 8, 10), (1, 8, 9)]
        assert "edges" not in written
    run(str(photos), *NET, "--methods", "edges", "--save_maps", "false", "--output", "without")
    assert not Path("without/maps.npz").exists()


CLASS_NAMES = {
    "a text file": ("names.txt", "cat\ndog\nnewt\nowl\npike\n"),
    "a JSON file": ("names.json", '["cat", "dog", "newt", "owl", "pike"]'),
    "a list": ("[cat,dog,newt,owl,pike]", None),
    "words": ("cat, dog, newt, owl, pike", None),
}


@pytest.mark.parametrize("case", CLASS_NAMES)
def test_class_names_come_from_a_file_or_a_list(photos: Path, case: str) -> None:
    given, content = CLASS_NAMES[case]
    if content is not None:
        Path(given).write_text(content)
    run(str(photos), *NET, "--methods", "random", "--class_names", given, "--target", "newt")
    assert {row["explained_class"] for row in table()} == {"newt"}
    assert table()[0]["explained"] == "2"
    assert {row["predicted_class"] for row in table()} <= {"cat", "dog", "newt", "owl", "pike"}


def test_the_time_is_told_after_the_first_picture(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(str(photos), *NET, "--methods", "random,edges")
    printed = capsys.readouterr().out
    assert re.search(r"up to about [\d.e-]+ \w+ for 1 more picture: the first took [\d.e-]+ \w+, with start-up \(", printed)
    run(str(photos / "chelsea.png"), *NET, "--methods", "random")
    assert "more picture" not in capsys.readouterr().out


def test_few_images_are_noted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--methods", "random", "--perturb", "lerf", "--fractions", "[0.5]"]
    for given, note in (
        (str(photos), "Mean of 2 images; .* Fewer than 30 images"),
        (str(photos / "chelsea.png"), "One image: no mean"),
    ):
        run(given, *NET, *options)
        assert re.search(note, capsys.readouterr().out)
        assert re.search(note, Path("fg_explain/perturbation.svg").read_text())
    curves = PerturbationCurves([0.5], "lerf", 0.0)
    assert "Fewer" in curves.describe_mean(29)
    assert "Fewer" not in curves.describe_mean(30)


def test_overlays_may_be_few_or_none(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, drawn in (("1", ["camera.png"]), ("0", [])):
        run(str(photos), *NET, "--methods", "random", "--num_overlays", number, "--output", f"few{number}", "--batch_size", "1")
        folder = Path(f"few{number}/overlays")
        assert [path.name for path in folder.iterdir()] == drawn if drawn else not folder.exists()
        assert ("overlays" in capsys.readouterr().out) == bool(drawn)
        assert len(table(f"few{number}/predictions.csv")) == 2


def test_pictures_of_every_kind_are_read(photos: Path) -> None:
    colours = Image.fromarray(skimage.data.chelsea()[:64, :64])
    folder = Path("[kinds]")
    folder.mkdir()
    colours.convert("CMYK").save(folder / "print.jpg")
    colours.convert("RGBA").save(folder / "it's [red] Ж.png")
    colours.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (64, 64))])
    run("[kinds]", *NET, "--methods", "random")
    assert sorted(row["picture"] for row in table()) == ["[kinds]/it's [red] Ж.png", "[kinds]/moving.gif", "[kinds]/print.jpg"]


def test_what_is_not_finite_is_named(photos: Path) -> None:
    with pytest.raises(CannotRun, match=r"the transform of photos/chelsea.png gives numbers that are not finite"):
        read_picture(photos / "chelsea.png", lambda picture: torch.full((3, 8, 8), torch.nan))


def test_a_file_that_is_no_picture_is_named_and_left_out(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    (photos / "damaged.png").write_bytes((photos / "chelsea.png").read_bytes()[:5000])
    run(str(photos), *NET, "--methods", "edges")
    printed = " ".join(capsys.readouterr().out.split())
    assert "left out: photos/broken.png cannot be read as a picture" in printed
    assert "left out: photos/damaged.png cannot be read as a picture" in printed
    assert len(table()) == 2


def test_a_method_that_cannot_explain_the_network_is_named_and_left_out(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(scores: object, images: Tensor) -> Tensor:
        return images[:, :1, :1]

    monkeypatch.setitem(METHODS, "lines", method_from(lines))
    run(str(photos), "--model", "networks_of_a_user.perceptron", "--methods", "gradcam,lines,gradient", "--batch_size", "1")
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("left out: gradcam: gradcam found no layer") == 1
    assert printed.count("left out: lines: maps of shape (1, 1, 1, 32) do not fit images") == 1
    assert len(list(Path("fg_explain/overlays").iterdir())) == 2
    grey = np.asarray(Image.open("fg_explain/overlays/chelsea.png"))[80:140, 12 + 134 : 12 + 134 + 60]  # of the second frame
    assert len(np.unique(grey)) > 1
    assert (grey == grey[..., :1]).all()  # no colours, but letters
    assert list(np.load("fg_explain/maps.npz")["methods"]) == ["gradient"]
    with pytest.raises(SystemExit, match="none of the methods can explain"):
        run(str(photos), "--model", "networks_of_a_user.perceptron", "--methods", "gradcam")


def test_a_method_that_does_not_apply_is_named_in_the_scores_and_the_plot(photos: Path) -> None:
    options = ["--methods", "gradcam,random", "--perturb", "lerf", "--fractions", "[0.5]"]
    run(str(photos), "--model", "networks_of_a_user.perceptron", *options)
    scores = {row["method"]: row for row in table("fg_explain/perturbation_summary.csv")}
    assert scores["gradcam"]["area"] == ""
    assert scores["gradcam"]["note"].startswith("does not apply: gradcam found no layer")
    assert scores["random"]["note"] == ""
    plot = Path("fg_explain/perturbation.svg").read_text()
    assert "gradcam: does not apply" in plot


def test_maps_that_rank_no_pixel_are_named(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def zero(scores: object, images: Tensor) -> Tensor:
        return torch.zeros_like(images[:, :1])

    monkeypatch.setitem(METHODS, "zero", method_from(zero))
    run(str(photos), *NET, "--methods", "zero,edges", "--perturb", "lerf", "--fractions", "[0.5]")
    note = "zero: 2 of 2 maps are constant, and their pixels are replaced in random order"
    assert f"note: {note}" in capsys.readouterr().out
    assert {row["method"]: row["note"] for row in table("fg_explain/perturbation_summary.csv")} == {"zero": note, "edges": ""}
    assert note in Path("fg_explain/perturbation.svg").read_text()
    with_note = imread("fg_explain/overlays/chelsea.png").shape[0]
    run(str(photos), *NET, "--methods", "edges", "--output", "without")
    assert with_note > imread("without/overlays/chelsea.png").shape[0]


def test_a_method_that_fails_later_has_no_map_from_then_on(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def once(scores: object, images: Tensor, calls: list[int] = []) -> Tensor:  # noqa: B006
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("no second time")
        return images[:, :1].abs()

    monkeypatch.setitem(METHODS, "once", method_from(once))
    run(str(photos), *NET, "--methods", "once,random", "--perturb", "lerf", "--fractions", "[0.5]")
    assert list(np.load("fg_explain/maps.npz")["methods"]) == ["random"]
    (score, note) = table("fg_explain/perturbation_summary.csv")
    assert score["method"] == "random"
    assert note["note"] == "failed: no second time"


def test_what_a_method_warns_of_is_noted_once(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(str(photos), "--model", "networks_of_a_user.perceptron", "--methods", "guided_backprop", "--batch_size", "1")
    assert capsys.readouterr().out.count("note: guided_backprop found no ReLU") == 1


# --- which network ---------------------------------------------------------------------------------------------------------------


def test_a_torchvision_name_comes_with_its_transform(photos: Path) -> None:
    main(["explain", str(photos / "chelsea.png"), "--model", "squeezenet1_1", "--weights", "none", "--methods", "gradient"])
    assert imread("fg_explain/overlays/chelsea.png").shape[1] > 2 * 224


def test_downloaded_weights_bring_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models

    made = torchvision.models.get_model("squeezenet1_1", weights=None)
    asked = []
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: asked.append(weights) or made)
    network = from_torchvision("squeezenet1_1")
    assert asked == [torchvision.models.SqueezeNet1_1_Weights.DEFAULT]
    assert network.classes[285] == "Egyptian cat"
    assert network.index_of("egyptian cat") == 285
    with pytest.raises(CannotRun, match=r"no class 'Egyptian bat' \(did you mean egyptian cat"):
        network.index_of("Egyptian bat")


def test_weights_that_cannot_be_downloaded_are_told_where_to_put(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", offline)
    with pytest.raises(CannotRun, match=r"(?s)could not be downloaded .*no route.*Fetch https://.*squeezenet1_1.*checkpoints"):
        from_torchvision("squeezenet1_1")


def test_a_lightning_checkpoint_is_loaded_into_its_class(photos: Path) -> None:
    torch.manual_seed(1)
    module = DigitClassifier(width=2)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint("digits.ckpt")
    arguments = ["--model", "fg_lightning.demo.DigitClassifier", "--checkpoint", "digits.ckpt", "--size", "28"]
    main(["explain", str(photos / "camera.jpg"), *arguments, "--mean", "[0.5]", "--std", "[0.5]", "--methods", "gradient"])
    image = read_picture(photos / "camera.jpg", picture_transform(28, [0.5], [0.5]))
    assert image.shape == (1, 28, 28)
    expected = module.eval()(image[None]).detach().softmax(1).max()
    assert float(table()[0]["predicted_probability"]) == pytest.approx(float(expected), abs=1e-4)  # four digits are written


@pytest.mark.parametrize("name", ["ready", "one_output"])
def test_a_module_and_a_network_of_one_output_are_taken(photos: Path, name: str) -> None:
    run(str(photos), "--model", f"networks_of_a_user:{name}", "--methods", "gradient,gradcam")
    assert len(table()) == 2
    assert ("output" in table()[0]) == (name == "one_output")


def test_a_transform_of_ones_own_may_give_every_size(photos: Path) -> None:
    run(str(photos), *NET, "--methods", "gradient", "--transform", "networks_of_a_user.tiny")
    assert len(table()) == 2


# --- which pictures --------------------------------------------------------------------------------------------------------------


def test_pictures_are_found_by_file_folder_and_pattern(photos: Path) -> None:
    assert find_pictures("photos") == [photos / "camera.jpg", photos / "chelsea.png"]
    assert find_pictures(["photos/*.png", "photos"]) == [photos / "chelsea.png", photos / "camera.jpg"]
    (photos / "cats").mkdir()
    (photos / ".thumbnails").mkdir()
    for folder in ("cats", ".thumbnails"):
        (photos / folder / "cat.JPEG").touch()
    assert find_pictures("photos") == [photos / "camera.jpg", photos / "cats" / "cat.JPEG", photos / "chelsea.png"]
    assert find_pictures("photos/notes.txt") == [photos / "notes.txt"]  # a file that is named is tried


# --- what cannot be done ---------------------------------------------------------------------------------------------------------

IMPOSSIBLE = {
    "no file": (["missing.png"], "'missing.png' is neither a file, a folder nor a pattern"),
    "an empty folder": (["empty"], "there is no picture in the folder empty"),
    "no picture": (["photos/notes.txt", *NET], "none of 1 pictures can be read; the first: photos/notes.txt"),
    "no such classifier": (["photos", "--model", "resnet5"], r"no classifier 'resnet5' \(did you mean resnet50 or"),
    "no such weights": (
        ["photos", "--model", "resnet18", "--weights", "V7"],
        "resnet18 has the weights IMAGENET1K_V1, DEFAULT, or none",
    ),
    "no such module": (["photos", "--model", "nowhere.net"], "'nowhere.net' cannot be imported"),
    "no such module, and a method of its own": (
        ["photos", "--model", "./nowhere.py:net", "--methods", "mine"],
        "'./nowhere.py:net' cannot be imported",
    ),
    "no network": (["photos", "--model", "networks_of_a_user.numbers"], "could not be built without arguments"),
    "a failing function": (["photos", "--model", "networks_of_a_user.failing"], r"OSError: weights\.pt is missing"),
    "a number": (["photos", "--model", "networks_of_a_user.seven"], "could not be built without arguments"),
    "no Lightning class": (
        ["photos", *NET, "--checkpoint", "x.ckpt"],
        "--checkpoint needs a LightningModule class as --model, .*colours",
    ),
    "no checkpoint": (
        ["photos", "--model", "fg_lightning.demo.DigitClassifier", "--checkpoint", "x.ckpt"],
        r"there is no checkpoint .*x\.ckpt",
    ),
    "a checkpoint for torchvision": (
        ["photos", "--model", "resnet18", "--checkpoint", "x.ckpt"],
        "resnet18 is a classifier",
    ),
    "no such method": (["photos", *NET, "--methods", "grad-cam"], "method must be one of random, .*, not 'grad-cam'"),
    "no such fill": (
        ["photos", *NET, "--perturb", "lerf", "--fill", "snow"],
        "fill must be one of black, image_mean, noisy_linear, .*, not 'snow'",
    ),
    "two numbers for three channels": (
        ["photos", *NET, "--methods", "random", "--perturb", "lerf", "--fill", "[-1.5,1]", "--output", "photos/new"],
        "fill gives 2 numbers, one for each channel, but the images have 3 channels",
    ),
    "no such reference": (
        ["photos", *NET, "--perturb", "lerf", "--reference", "chance"],
        "--reference must be one of random, .*chance",
    ),
    "no method": (["photos", *NET, "--methods", "[]"], "--methods must have at least one name"),
    "falling fractions": (["photos", *NET, "--perturb", "lerf", "--fractions", "[0.2,0.1]"], "each larger than the one before"),
    "no such device": (["photos", *NET, "--device", "abacus"], "abacus"),
    "no such class": (["photos", *NET, "--target", "5"], "there is no class 5; the network has 5 outputs, 0 to 4"),
    "a class of one output": (
        ["photos", "--model", "networks_of_a_user.one_output", "--target", "7"],
        "there is no class 7: the network has a single output",
    ),
    "a file for a folder": (["photos", *NET, "--output", "photos/notes.txt/maps"], r"photos/notes\.txt is a file"),
    "no class names": (["photos", *NET, "--target", "cat"], "names of the network's classes are unknown, so 'cat'"),
    "a dense output": (
        ["photos", "--model", "networks_of_a_user.dense"],
        r"each class, \[1, K\], but it gives \[1, 5, ",
    ),
    "another size": (
        ["photos", "--model", "networks_of_a_user.perceptron", "--size", "30"],
        r"fails on images of shape \[1, 3, 30",
    ),
    "no tensor": (
        ["photos", *NET, "--transform", "networks_of_a_user.numbers"],
        "must return a .*, but it returned list",
    ),
    "one std": (["photos", *NET, "--std", "[0.5]"], "only one of --mean and --std was given; give both"),
    "one std for three": (["photos", *NET, "--mean", "[0,0,0]", "--std", "[0.5]"], "--mean and --std: .*not 3 and 1"),
    "a mean for torchvision": (["photos", "--mean", "[0.5]", "--std", "[0.5]"], "resnet50 is a classifier of torchvision"),
    "no class names file": (["photos", *NET, "--class_names", "names.txt"], r"there is no file names\.txt of class names"),
    "class names that are no text": (["photos", *NET, "--class_names", "photos/chelsea.png"], "chelsea.png cannot be read"),
    "class names of another kind": (
        ["photos", *NET, "--class_names", "photos/map.json"],
        "map.json must hold the names of the classes in order",
    ),
    "two class names": (["photos", *NET, "--class_names", "[cat,dog]"], "there are 2 class names, but the network has 5 outputs"),
    "class names of one output": (
        ["photos", "--model", "networks_of_a_user.one_output", "--class_names", "[cat]"],
        "the network has a single output for each image, not classes",
    ),
    "a data set that is not known": (
        ["photos", *NET, "--perturb", "lerf", "--fill", "dataset_mean"],
        "mean of the training images, which is unknown here; give its numbers instead",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_done_is_said_in_a_sentence(photos: Path, case: str) -> None:
    Path("empty").mkdir()
    (photos / "map.json").write_text('{"0": "cat"}')
    arguments, message = IMPOSSIBLE[case]
    with pytest.raises(SystemExit, match=f"(?s)^fg-lightning: .*{message}"):
        main(["explain", *arguments])
    assert not Path("fg_explain").exists()


def test_called_from_python_it_raises(photos: Path) -> None:
    with pytest.raises(CannotRun, match="did you mean"):
        explain(str(photos), model="resnet51")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["explain", "--help"])
    printed = capsys.readouterr().out
    for option in ("--model", "--methods", "--target", "--output", "--perturb", "--checkpoint"):
        assert option in printed


@pytest.mark.parametrize(
    "name",
    [
        "chelsea.png",
        "predictions.csv",
        "maps.npz",
        "perturbation.csv",
        "perturbation_images.csv",
        "perturbation_summary.csv",
        "perturbation.png",
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(photos: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    given = (str(photos), *NET, "--methods", "random", "--perturb", "lerf", "--fractions", "[0.5]")
    run(*given)
    before = {path: path.read_bytes() for path in Path("fg_explain").rglob("*") if path.is_file()}
    real = os.replace

    def full(source: str, path: Path) -> None:
        if Path(path).name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        real(source, path)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SystemExit, match=rf"{name} cannot be written: No space left on device; make room, or use another folder"):
        run(*given)
    after = {path: path.read_bytes() for path in Path("fg_explain").rglob("*") if path.is_file()}
    assert after == before
