"""Pages in Debian's Chromium (apt-get install chromium chromium-driver)."""

import shutil
from contextlib import contextmanager

import pytest

DRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium")

IN_CHROMIUM = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DRIVER and CHROMIUM), reason="there is no browser: apt-get install chromium chromium-driver"),
]

SNAPSHOT, CHOSEN = "snapshot", "chosen"
"""What a run's page and an experiment's say they have drawn."""


@contextmanager
def started(*, offline):
    """A browser."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions", {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    )
    yield driver
    driver.quit()


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
