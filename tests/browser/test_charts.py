"""Pages without maps in a browser: charts alone."""

from __future__ import annotations

from pathlib import Path

from selenium import webdriver

import mmap_st as mm
from mmap_st.report import draw_page
from tests.browser.test_page import Page
from tests.conftest import Tiny


class Charts(Page):
    """A page that says nothing of maps."""

    def ready(self) -> bool:
        return bool(self.texts("h1"))


def test_a_comparison_shows_its_patients(browser: webdriver.Chrome, tiny: Tiny, tmp_path: Path) -> None:
    mm.compare(
        f"her2st:{tiny.her2st}", tiny.store, encoders=["efficientnet-lite0"], heads=["mean", "ridge"],
        genes="mean:5", out=tmp_path / "c", progress=False,
    )  # fmt: skip
    draw_page(tmp_path / "c", tmp_path / "c.html")
    page = Charts(browser, tmp_path / "c.html")
    page.wait(lambda: len([c for c in page.find("canvas") if c.size["width"] > 200]) >= 2)
    assert "Patients" in page.texts("h2")
    assert not page.errors()
