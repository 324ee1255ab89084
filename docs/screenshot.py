"""Take a picture of a page of results: python docs/screenshot.py PAGE.html PICTURE.png [GENE].

It needs the Chromium that `make browser` installs.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

_SETTLED_S = 3.0


def main(page: Path, picture: Path, gene: str | None = None) -> None:
    """Open the page, choose a gene, and write what is seen."""
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1330,1850",
    ):
        options.add_argument(flag)
    browser = webdriver.Chrome(service=Service(str(shutil.which("chromedriver"))), options=options)
    browser.get(page.resolve().as_uri())
    time.sleep(_SETTLED_S)
    if gene is not None:
        browser.execute_script("Bokeh.documents[0].get_model_by_name('gene').value = arguments[0]", gene)
        time.sleep(_SETTLED_S)
    browser.save_screenshot(str(picture))
    browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
