"""Take a picture of a page of results: python docs/screenshot.py PAGE.html PICTURE.png [GENE].

Or of a viewer, by the address that `mmap view` prints: python docs/screenshot.py ADDRESS PICTURE.png [GENE
[KEYS]], where KEYS are pressed on the map, such as +++. It needs the Chromium that `make browser` installs.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

_SETTLED_S = 3.0
#: Of pictures in JPEG, which tissue asks for.
_QUALITY = 85
_PAGE_PX = 1000


_VIEWED = """
const field = document.getElementById("gene")
field.value = arguments[0]
field.dispatchEvent(new Event("change"))
"""


def main(page: str, picture: Path, gene: str | None = None, keys: str = "") -> None:
    """Open the page, choose a gene, press keys, and write what is seen."""
    viewer = page.startswith("http")
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={'1330,940' if viewer else '1330,1850'}",
    ):
        options.add_argument(flag)
    browser = webdriver.Chrome(service=Service(str(shutil.which("chromedriver"))), options=options)
    browser.get(page if viewer else Path(page).resolve().as_uri())
    time.sleep(_SETTLED_S)
    if gene is not None:
        choose = "Bokeh.documents[0].get_model_by_name('gene').value = arguments[0]"
        browser.execute_script(_VIEWED if viewer else choose, gene)
        time.sleep(_SETTLED_S)
    if keys:
        browser.find_element(By.ID, "map").send_keys(keys)
        time.sleep(_SETTLED_S)
    if not viewer:  # the whole page, below the browser's own bars
        height = browser.execute_script("return document.documentElement.scrollHeight")
        browser.set_window_size(1330, height + 160)
        time.sleep(_SETTLED_S)
    seen = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    browser.quit()
    if not viewer:
        seen.thumbnail((_PAGE_PX, seen.height), Image.Resampling.LANCZOS)
    seen.save(picture, quality=_QUALITY, subsampling=0, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
