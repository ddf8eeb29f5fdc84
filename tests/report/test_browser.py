"""Reports as the user uses them, in Chromium without a network."""

import base64
import io
import re
import time
import unicodedata

import numpy as np
import pytest

from fg_lightning.report import write_comparison, write_report
from tests.helpers.browser_pages import CHOSEN, IN_CHROMIUM, SNAPSHOT, at_snapshot, opened, pixels, press, slide, started, until
from tests.helpers.written_runs import experiment, run

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

pytestmark = IN_CHROMIUM


@pytest.fixture(scope="module")
def browser():
    with started(offline=True) as driver:
        yield driver


@pytest.fixture(autouse=True)
def _no_error_in_the_console(browser):
    browser.get_log("browser")
    yield
    assert browser.get_log("browser") == []


INJECTED = """<script>document.documentElement.dataset.injected = "script"</script>
<img src="x" onerror="document.documentElement.dataset.injected = 'handler'"><img src="https://example.org/x.png"></body>"""


@pytest.mark.parametrize(("make", "drawn"), [(run, SNAPSHOT), (experiment, CHOSEN)])
def test_its_policy_lets_nothing_run_that_is_not_its_own(browser, tmp_path, make, drawn):
    make(tmp_path)
    path = write_report(tmp_path)
    path.write_text(path.read_text().replace("</body>", INJECTED))
    opened(browser, path, drawn)  # with its curves
    assert browser.execute_script("return document.documentElement.dataset.injected") is None
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert refused
    assert all("Content Security Policy" in message for message in refused if "net::ERR_FILE_NOT_FOUND" not in message)


TILE = ".grid li:nth-child(2) canvas"


@pytest.fixture
def page(browser, tmp_path):
    run(tmp_path)
    opened(browser, write_report(tmp_path), SNAPSHOT)
    return browser


def test_the_slider_moves_the_picture(page):
    last = pixels(page, TILE)
    slide(page, "snapshot", 0)
    at_snapshot(page, 0)
    assert pixels(page, TILE) != last
    assert page.find_element("id", "moment").text == "untrained, step 0"
    assert "predicted" in page.find_element("css selector", ".grid button").get_attribute("aria-label")
    slide(page, "snapshot", 3)
    at_snapshot(page, 3)
    assert pixels(page, TILE) == last


def test_arrow_keys_go_through_the_snapshots_and_stop_at_the_ends(page):
    from selenium.webdriver.common.keys import Keys

    shown = {3: pixels(page, TILE)}
    for snapshot in (2, 1, 0, 0):
        press(page, Keys.ARROW_LEFT)
        at_snapshot(page, snapshot)
        shown[snapshot] = pixels(page, TILE)
    assert len({tuple(painted) for painted in shown.values()}) == 4
    press(page, Keys.ARROW_RIGHT)
    at_snapshot(page, 1)
    assert pixels(page, TILE) == shown[1]
    press(page, Keys.END)
    at_snapshot(page, 3)
    press(page, Keys.HOME)
    at_snapshot(page, 0)


def test_strength_is_the_opacity_of_the_maps_alone(page):
    opacity = "return getComputedStyle(document.querySelector('.grid canvas')).opacity"
    grey = "return getComputedStyle(document.querySelector('.grid img')).filter"
    assert float(page.execute_script(opacity)) == pytest.approx(0.7)
    slide(page, "strength", 0)
    assert (float(page.execute_script(opacity)), page.execute_script(grey)) == (0, "grayscale(0)")
    slide(page, "strength", 1)
    assert (float(page.execute_script(opacity)), page.execute_script(grey)) == (1, "grayscale(1)")


def test_play_goes_from_the_first_snapshot_to_the_last(page):
    page.find_element("id", "play").click()
    at_snapshot(page, 0)
    at_snapshot(page, 3)
    until(page, "document.getElementById('play').getAttribute('aria-label') === 'play'")


def test_an_image_opens_with_its_strip_and_what_is_known_of_it(page):
    from selenium.webdriver.common.keys import Keys

    tile = page.find_elements("css selector", ".grid .tile")[1]
    page.execute_script("arguments[0].focus()", tile)
    press(page, Keys.ENTER)
    dialog = page.find_element("id", "detail")
    until(page, "document.getElementById('detail').open")
    assert dialog.find_element("id", "detail-title").text == "Image 1: dog"
    assert len(dialog.find_elements("css selector", ".strip .tile")) == 4
    assert "completeness error" in dialog.text
    assert "layer.0" in dialog.text
    big = pixels(page, "#detail-picture canvas")
    assert big == pixels(page, TILE)
    press(page, Keys.ARROW_LEFT)
    at_snapshot(page, 2)
    until(page, "document.querySelector('.strip [aria-current=true]').dataset.snapshot === '2'")
    assert pixels(page, "#detail-picture canvas") != big
    dialog.find_element("id", "image-after").click()
    assert dialog.find_element("id", "detail-title").text == "Image 2: bird"
    press(page, Keys.ESCAPE)
    until(page, "!document.getElementById('detail').open")


def test_layers_whose_share_is_not_defined_have_no_bar(browser, tmp_path):
    run(tmp_path)
    lines = (tmp_path / "layers.csv").read_text().replace("0,0,,input,0.5,", "0,0,,input,,").splitlines(keepends=True)
    of_first = [line if not line.startswith("1,") else ",".join([*line.split(",")[:4], "", "\n"]) for line in lines]
    (tmp_path / "layers.csv").write_text("".join(of_first))
    opened(browser, write_report(tmp_path), SNAPSHOT)
    bars = []
    for snapshot in range(3):
        slide(browser, "snapshot", snapshot)
        at_snapshot(browser, snapshot)
        browser.execute_script("document.querySelector('.grid .tile').click()")
        bars.append([bar.text for bar in browser.find_elements("css selector", "#bars th")])
        assert bool(browser.find_element("id", "layers-title").text) == bool(bars[-1])
        browser.execute_script("document.getElementById('close').click()")
    assert bars == [["layer.0", "layer.1"], [], ["input", "layer.0", "layer.1"]]


def test_curves_are_drawn_and_a_line_says_where_the_slider_is(page):
    figures = page.find_elements("css selector", ".figure")
    assert len(figures) >= 5
    assert all(figure.find_elements("css selector", "svg.main-svg") for figure in figures)
    slide(page, "snapshot", 1)
    until(page, "document.getElementById('figure-shares').layout.shapes[0].x0 === 1")


def test_it_fits_a_phone_and_the_dark(browser, tmp_path):
    run(tmp_path / "run")
    experiment(tmp_path / "roar")
    ground = "return getComputedStyle(document.body).backgroundColor"
    try:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        )
        for path, drawn in ((write_report(tmp_path / "run"), SNAPSHOT), (write_report(tmp_path / "roar"), CHOSEN)):
            opened(browser, path, drawn)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
            assert browser.execute_script(ground) == "rgb(255, 255, 255)"
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        assert browser.execute_script(ground) == "rgb(18, 22, 28)"
        until(browser, "document.querySelector('.figure').layout.font.color === '#e6eaf0'")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_tables_are_sorted_by_any_column_with_what_is_missing_last(browser, tmp_path):
    experiment(tmp_path, methods=("random", "fullgrad", "gradient"))
    opened(browser, write_report(tmp_path), CHOSEN)

    def column(place):
        cells = browser.find_elements("css selector", f"#scores tbody tr td:nth-child({place})")
        return [cell.text for cell in cells]

    assert column(1) == ["gradient", "fullgrad", "random"]  # the best first
    heading = browser.find_element("css selector", "#scores th:nth-child(2)")
    heading.find_element("tag name", "button").click()
    assert column(1) == ["fullgrad", "gradient", "random"]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.find_element("tag name", "button").click()
    assert column(1) == ["gradient", "fullgrad", "random"]
    browser.find_element("css selector", "#scores th:nth-child(1) button").click()
    assert column(1) == ["fullgrad", "gradient", "random"]
    assert heading.get_attribute("aria-sort") is None


def test_masks_of_another_image(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    experiment(tmp_path)
    opened(browser, write_report(tmp_path), CHOSEN)
    first = pixels(browser, ".masks canvas")
    gone = [first[i : i + 3] == [228, 87, 46] for i in range(0, len(first), 4)]
    assert sum(gone) == 9  # a quarter of 36
    press(browser, Keys.ARROW_RIGHT)
    until(browser, "document.documentElement.dataset.chosen === '1'")
    assert pixels(browser, ".masks canvas") != first
    assert browser.find_element("css selector", ".choice [aria-pressed=true]").text == "image 1"
    assert "image 1" in browser.find_element("css selector", ".masks canvas").get_attribute("aria-label")


@pytest.mark.parametrize("size", [28, 224])
def test_200_epochs_of_32_images_stay_under_30_mb_and_open_fast(browser, tmp_path, size):
    run(tmp_path, num_snapshots=200, n=32, size=size, layers=30)
    path = write_report(tmp_path)
    assert path.stat().st_size < 30e6
    start = time.monotonic()
    opened(browser, path, SNAPSHOT)
    assert time.monotonic() - start < 30  # a hang, not a measurement
    slide(browser, "snapshot", 100)
    at_snapshot(browser, 100)


# --- several methods, findings, paper, comparisons

FINDINGS = """snapshot,finding,method,value,threshold,message,advice,page
3,corner,fullgrad,0.62,0.2,"Relevance gathers in the top left corner, more than chance.",Look for a mark there.,findings.html#corner
"""


def record_method(folder, name, maps):
    """A further method of a run."""
    (folder / name).mkdir()
    np.save(folder / name / "maps.npy", np.stack([values.numpy() for values in maps]).astype(np.float16))
    rows = [f"{i},{i},{10 * i},,{0.1 * i}" for i in range(len(maps))]
    (folder / name / "history.csv").write_text("\n".join(["snapshot,epoch,step,num_steps,concentration", *rows, ""]))


def test_the_maps_and_curves_of_a_further_method_can_be_chosen(browser, tmp_path):
    maps = run(tmp_path)
    record_method(tmp_path, "gradcam", maps[::-1])
    opened(browser, write_report(tmp_path), SNAPSHOT)
    fullgrad = pixels(browser, TILE)
    browser.execute_script(
        "const menu = document.getElementById('method'); menu.value = 'gradcam'; menu.dispatchEvent(new Event('change'))"
    )
    until(browser, "document.documentElement.dataset.method === 'gradcam'")
    assert pixels(browser, TILE) != fullgrad
    slide(browser, "snapshot", 0)
    at_snapshot(browser, 0)
    assert pixels(browser, TILE) == pytest.approx(fullgrad, abs=8)  # its maps are FullGrad's in reverse, without its rounding
    names = browser.execute_script("return document.getElementById('figure-concentration').data.map((line) => line.name)")
    assert names == ["fullgrad: Gini index", "gradcam: Gini index"]
    assert "gradcam concentration" in browser.find_element("css selector", "#numbers-table thead").get_attribute("textContent")


def test_maps_that_are_zero_are_named_where_they_are_shown_and_counted(browser, tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for seed, folder in enumerate(folders):
        run(folder, seed=seed)
    entries = np.load(folders[1] / "maps.npy")
    entries[3, :2] = 0
    np.save(folders[1] / "maps.npy", entries)
    named = "return [...document.querySelectorAll('{} .flat')].map((words) => words.closest('{}').{})"
    opened(browser, write_report(folders[1]), SNAPSHOT)
    assert browser.execute_script(named.format(".grid", ".tile", "dataset.image")) == ["0", "1"]
    assert browser.execute_script(named.format(".film", "button", "dataset.snapshot")) == ["3", "3"]
    assert browser.find_element("id", "zero").text.startswith("2 of 5 maps of this snapshot are zero everywhere.")
    assert "the map is all zero" in browser.find_element("css selector", ".grid .tile").get_attribute("aria-label")
    slide(browser, "snapshot", 2)
    at_snapshot(browser, 2)
    assert browser.execute_script(named.format(".grid", ".tile", "dataset.image")) == []
    assert not browser.find_element("id", "zero").is_displayed()
    opened(browser, write_comparison(folders, tmp_path / "page.html"), SNAPSHOT)
    assert browser.execute_script(named.format(".compared", ".tile", "dataset.run")) == ["1", "1"]


def test_findings_come_first_and_wrong_predictions_are_marked(browser, tmp_path):
    run(tmp_path)
    (tmp_path / "findings.csv").write_text(FINDINGS)
    opened(browser, write_report(tmp_path), SNAPSHOT)
    finding = browser.find_element("css selector", ".finding")
    assert "Relevance gathers in the top left corner" in finding.text
    assert "corner (fullgrad): 0.62, threshold 0.2" in finding.text
    assert finding.location["y"] < browser.find_element("css selector", ".grid").location["y"]
    assert not browser.find_element("id", "no-findings").is_displayed()
    assert not browser.find_elements("css selector", ".grid .is-wrong")
    slide(browser, "snapshot", 0)  # whose predictions are all wrong
    at_snapshot(browser, 0)
    assert len(browser.find_elements("css selector", ".grid .is-wrong")) == 5
    assert len(browser.find_elements("css selector", ".film .is-wrong")) == 5


def test_the_film_strip_has_at_most_12_snapshots_and_says_so(browser, tmp_path):
    run(tmp_path, num_snapshots=30, n=10)
    opened(browser, write_report(tmp_path), SNAPSHOT)
    heads = [head.text for head in browser.find_elements("css selector", ".film thead th")]
    assert (len(heads), heads[0], heads[-1]) == (12, "untrained", "epoch 29")
    assert "12 of 30 snapshots, evenly chosen" in browser.find_element("id", "film-note").text
    assert len(browser.find_elements("css selector", ".film tbody tr")) == 8
    browser.find_element("id", "film-more").click()
    assert len(browser.find_elements("css selector", ".film tbody tr")) == 10
    browser.find_elements("css selector", ".film tbody tr:nth-child(2) button")[3].click()
    assert browser.find_element("id", "moment").text.startswith(heads[3])


def words_on_paper(browser):
    """The words of every page of the PDF, with where they are, and the size of every page."""
    from pdfminer.high_level import extract_pages
    from pdfminer.layout import LTTextContainer

    paper = {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
    printed = browser.execute_cdp_cmd("Page.printToPDF", paper)
    pages = list(extract_pages(io.BytesIO(base64.b64decode(printed["data"]))))
    return [[(box.get_text(), box.bbox) for box in page if isinstance(box, LTTextContainer)] for page in pages], [
        page.bbox for page in pages
    ]


@pytest.mark.parametrize("make", ["run", "experiment", "comparison"])
def test_paper_shows_all_of_it_and_cuts_nothing(browser, tmp_path, make):
    pytest.importorskip("pdfminer")
    if make == "experiment":
        experiment(tmp_path / "a")
        path, drawn, expected = write_report(tmp_path / "a"), CHOSEN, ["Methods against random", "total variation", "fullgrad"]
    elif make == "run":
        run(tmp_path / "a", num_snapshots=30, n=16)
        path, drawn = write_report(tmp_path / "a"), SNAPSHOT
        expected = ["What the network looks at", "Film strip", "epoch 29", "Drift of the maps", "All numbers", "implicit share"]
    else:
        for seed in range(4):
            run(tmp_path / f"seed_{seed}", seed=seed)
        path, drawn = write_comparison([tmp_path / f"seed_{seed}" for seed in range(4)], tmp_path / "page.html"), SNAPSHOT
        expected = ["Side by side", "Where the maps differ most", "Distance of the maps", "seed_3 to the others"]
    opened(browser, path, drawn)
    pages, sizes = words_on_paper(browser)
    words = unicodedata.normalize("NFKC", " ".join(text for page in pages for text, _ in page))  # a font has a letter for ff
    words = re.sub(r"\s+", " ", words)
    assert [phrase for phrase in expected if phrase not in words] == []
    margin = 20  # points; the page's own is 34
    outside = [
        text
        for page, (_, _, width, height) in zip(pages, sizes, strict=True)
        for text, (left, bottom, right, top) in page
        if left < margin or right > width - margin or bottom < margin or top > height - margin
    ]
    assert outside == []


def test_paper_repeats_the_heads_of_tables_and_turns_for_wide_ones(browser, tmp_path):
    pytest.importorskip("pdfminer")
    experiment(tmp_path, fractions=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), seeds=9)  # 21 columns, 136 trainings
    opened(browser, write_report(tmp_path), CHOSEN)
    pages, sizes = words_on_paper(browser)
    words = [" ".join(text for text, _ in page) for page in pages]
    with_trainings = [i for i, text in enumerate(words) if "1.5" in text.split()]  # the seconds of each
    assert len(with_trainings) > 2
    assert [i for i in with_trainings if "seconds" not in words[i]] == []
    (scores,) = [i for i, text in enumerate(words) if "masks at 0.7" in " ".join(text.split())]
    assert "Methods against random" in words[scores]
    assert sizes[scores][2] > sizes[scores][3]
    assert sizes[0][2] < sizes[0][3]


def test_compared_runs_move_together(browser, tmp_path):
    for seed in range(3):
        run(tmp_path / f"seed_{seed}", seed=seed)
    opened(browser, write_comparison([tmp_path / f"seed_{seed}" for seed in range(3)], tmp_path / "page.html"), SNAPSHOT)
    tiles = [f".compared li:nth-child(2) .tile:nth-child({place}) canvas" for place in (1, 2, 3)]
    last = [pixels(browser, tile) for tile in tiles]
    assert len({tuple(painted) for painted in last}) == 3
    slide(browser, "snapshot", 0)
    at_snapshot(browser, 0)
    assert all(pixels(browser, tile) != painted for tile, painted in zip(tiles, last, strict=True))
    rows = browser.find_elements("css selector", "#differences tbody tr")
    assert float(rows[0].find_element("css selector", "td").text) >= float(rows[-1].find_element("css selector", "td").text)
    where = rows[0].find_elements("css selector", "td")[2].text
    rows[0].find_element("css selector", "button").click()
    until(browser, "document.getElementById('detail').open")
    assert browser.find_element("id", "moment").get_attribute("textContent") == where
    assert [row.text for row in browser.find_elements("css selector", ".film tbody th")] == ["seed_0", "seed_1", "seed_2"]
