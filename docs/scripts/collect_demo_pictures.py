"""Makes the manual's pictures of the demo: fg-lightning demo --output fg_demo; python docs/scripts/collect_demo_pictures.py fg_demo

Writes docs/images/film_strip.png, wandb_saliency.png, report.png and report_image.png. The last two need Chromium and chromedriver.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

IMAGES = Path(__file__).parents[1] / "images"


def crop_strip(run: Path, num_rows: int = 4) -> None:
    """The title and the first rows of the strip; a row has the height of the columns' distance, and its caption."""
    strip = Image.open(run / "film_strip.png")
    top, row = 65, 135
    strip.crop((0, 0, strip.width, top + num_rows * row)).save(IMAGES / "film_strip.png", optimize=True)


def tile_overlays(demo: Path, num_columns: int = 4) -> None:
    """The overlays of the last snapshot, as they lie in the W&B run's folder, in the order of the probe."""
    paths = list(demo.glob("wandb/*run-*/files/media/images/fullgrad/saliency_*.png"))
    last = max(int(path.stem.split("_")[1]) for path in paths)
    found = [path for path in paths if int(path.stem.split("_")[1]) == last]
    overlays = [Image.open(path) for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]
    width, height = overlays[0].size
    rows = -(-len(overlays) // num_columns)
    sheet = Image.new("RGB", (num_columns * (width + 8), rows * (height + 8)), "white")
    for index, overlay in enumerate(overlays):
        sheet.paste(overlay, (index % num_columns * (width + 8), index // num_columns * (height + 8)))
    sheet.save(IMAGES / "wandb_saliency.png", optimize=True)


def show_report(run: Path) -> None:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1100,1300"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get((run / "report.html").resolve().as_uri())
        time.sleep(4)
        save_screenshot(driver, IMAGES / "report.png")
        driver.find_element(By.CSS_SELECTOR, ".tile").click()
        time.sleep(2)
        save_screenshot(driver, IMAGES / "report_image.png")
    finally:
        driver.quit()


def save_screenshot(driver: webdriver.Chrome, path: Path) -> None:
    driver.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    demo = Path(sys.argv[1])
    (run,) = (path.parent for path in demo.glob("*/*/fullgrad/film_strip.png"))
    crop_strip(run)
    tile_overlays(demo)
    show_report(run)
