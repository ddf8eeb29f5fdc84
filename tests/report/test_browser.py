"""Reports as the user uses them, in Debian's Chromium (apt-get install chromium chromium-driver)."""

import shutil
import time

import pytest

from fg_lightning.report import write_report
from tests.helpers.written_runs import experiment, run

DRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DRIVER and CHROMIUM), reason="there is no browser: apt-get install chromium chromium-driver"),
]

SNAPSHOT, CHOSEN = "snapshot", "chosen"
"""What a run's page and an experiment's say they have drawn."""


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions", {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    )
    yield driver
    driver.quit()


@pytest.fixture(autouse=True)
def _no_error_in_the_console(browser):
    browser.get_log("browser")
    yield
    assert browser.get_log("browser") == []


def until(browser, condition, seconds=60):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, poll_frequency=0.05).until(lambda driver: driver.execute_script(f"return {condition}"))


def opened(browser, path, drawn):
    browser.get(f"file://{path}")
    until(browser, f"document.documentElement.dataset.drawn && document.documentElement.dataset.{drawn}")


def press(browser, key):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(key).perform()


def pixels(browser, selector):
    """Of a canvas, as the browser has painted it."""
    return browser.execute_script(
        f"const seen = document.querySelector({selector!r}), copy = document.createElement('canvas');"
        "[copy.width, copy.height] = [seen.width, seen.height];"
        "const context = copy.getContext('2d', { willReadFrequently: true }); context.drawImage(seen, 0, 0);"
        "return [...context.getImageData(0, 0, copy.width, copy.height).data]"
    )


def slide(browser, name, value):
    browser.execute_script(
        "const [name, value] = arguments; const slider = document.getElementById(name); slider.value = value;"
        "slider.dispatchEvent(new Event('input', { bubbles: true }))",
        name,
        value,
    )


def at_snapshot(browser, snapshot):
    return until(browser, f"document.documentElement.dataset.snapshot === '{snapshot}'")


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
