"""fg-lightning watch in Chromium, while a training goes on."""

import re
import subprocess
import sys

import pytest

from tests.helpers.browser_pages import IN_CHROMIUM, SNAPSHOT, pixels, slide, started, until
from tests.helpers.written_runs import run

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytest.importorskip("uvicorn")
pytestmark = IN_CHROMIUM

TRAINING = """
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
from fg_lightning import FullGradMonitor
from lightning.pytorch import Callback
from tests.helpers.small_trainings import Classifier, loader, trainer


class Wait(Callback):
    "Until the test has seen an epoch."

    def on_train_epoch_end(self, trainer, module):
        print("epoch", trainer.current_epoch, flush=True)
        sys.stdin.readline()


fit = trainer(Path(sys.argv[1]), FullGradMonitor(num_samples=4), Wait(), max_epochs=5)
fit.fit(Classifier(), loader(seed=1), loader(16, seed=2))
"""


@pytest.fixture(scope="module")
def browser():
    with started(offline=False) as driver:
        yield driver


@pytest.fixture(autouse=True)
def _clean_console(browser):
    browser.get("about:blank")
    browser.get_log("browser")


def read_address(process):
    """The address of the page that `watch` prints, after the lines before it."""
    return next(line.split()[1] for line in process.stdout if line.startswith("page "))


@pytest.fixture
def watched(tmp_path):
    """A folder that is watched, and the address of its page."""
    command = [sys.executable, "-m", "fg_lightning", "watch", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield tmp_path, read_address(process)
        finally:
            process.terminate()


NUMBERS = """[
    run.snapshots.length,
    document.querySelectorAll("#film thead th").length,
    document.getElementById("numbers-table").tBodies[0].rows.length,
    document.getElementById("figure-concentration")?.data?.[0].x.length,
]"""
"""Of a page: snapshots, columns of the film strip, rows of the table, points of a curve."""


def test_the_page_follows_a_training_without_being_loaded_again(browser, watched):
    folder, address = watched
    browser.get(address)
    until(browser, "document.getElementById('waiting')?.textContent.startsWith('There is no run here yet')")
    command = [sys.executable, "-c", TRAINING, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as training:
        until(browser, "document.documentElement.dataset.snapshot !== undefined", 120)
        browser.execute_script("window.isTheSamePage = true")
        for num_snapshots in range(2, 6):
            line = training.stdout.readline()
            while not line.startswith("epoch"):
                line = training.stdout.readline()
            until(browser, f"JSON.stringify({NUMBERS}) === '[{num_snapshots},{num_snapshots},{num_snapshots},{num_snapshots}]'")
            until(browser, f"document.documentElement.dataset.snapshot === '{num_snapshots - 1}'")  # the last one is shown
            if num_snapshots == 4:
                break
            training.stdin.write("\n")
            training.stdin.flush()
        last = pixels(browser, ".grid li:nth-child(2) canvas")
        slide(browser, "snapshot", 1)  # an earlier one stays
        until(browser, "document.documentElement.dataset.snapshot === '1'")
        assert pixels(browser, ".grid li:nth-child(2) canvas") != last
        training.communicate("\n" * 5, timeout=120)
        until(browser, "document.getElementById('live').textContent.startsWith('Training has ended')")
    until(browser, "run.snapshots.length === 6")
    assert browser.execute_script("return document.getElementById('snapshot').max") == "5"
    assert browser.execute_script("return document.documentElement.dataset.snapshot") == "1"
    assert browser.execute_script("return window.isTheSamePage")
    assert browser.execute_script("return document.getElementById('figure-drift').data[0].x.length") == 6  # it came later
    assert browser.get_log("browser") == []


def test_runs_that_begin_appear_in_the_list(browser, watched):
    folder, address = watched
    for name in ("first", "second"):
        run(folder / name / "fullgrad")
    browser.get(address)
    until(
        browser, "document.querySelectorAll('#runs tbody tr').length === 2 && document.querySelectorAll('#runs img').length === 2"
    )
    (folder / "<b>third").mkdir()
    run(folder / "<b>third" / "fullgrad", seed=2)
    until(browser, "document.querySelectorAll('#runs tbody tr').length === 3")
    names = [cell.text.splitlines()[0] for cell in browser.find_elements("css selector", "#runs tbody th")]
    assert names[0] == "<b>third"  # the newest first
    browser.find_element("link text", "<b>third").click()
    until(browser, f"document.documentElement.dataset.{SNAPSHOT} === '3'")
    until(browser, "!document.getElementById('all-runs').hidden")
    browser.find_element("link text", "All runs").click()
    until(browser, "document.querySelectorAll('#runs tbody tr').length === 3")
    assert browser.get_log("browser") == []


def test_a_page_whose_server_is_gone_says_so(browser, tmp_path):
    run(tmp_path / "fullgrad")
    command = [sys.executable, "-m", "fg_lightning", "watch", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        browser.get(read_address(process))
        until(browser, "document.getElementById('live').textContent.startsWith('Training has ended')")
        process.terminate()
        process.wait(timeout=30)
    until(browser, "document.getElementById('live').dataset.state === 'lost'")
    assert re.search(r"Not connected .*still running", browser.find_element("id", "live").text)
