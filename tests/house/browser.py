"""A real browser, without a screen."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
QUIET = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"

# the colours that text has and stands on: the nearest ancestor with a background
CONTRAST = """
const number = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const found = [];
for (const element of document.querySelectorAll("body *")) {
  if (["SCRIPT", "STYLE", "TITLE"].includes(element.tagName.toUpperCase())) continue;
  const own = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join("");
  if (!own || !element.getClientRects().length) continue;
  const svg = element instanceof SVGElement;
  const colour = number(getComputedStyle(element)[svg ? "fill" : "color"]);
  let under = element, ground = [0, 0, 0, 0];
  while (under && ground[3] === 0) {
    const at = number(getComputedStyle(under).backgroundColor);
    if (at.length === 3 || at[3] > 0) ground = [...at.slice(0, 3), 1];
    under = under.parentElement;
  }
  const [high, low] = [light(colour), light(ground)].sort((a, b) => b - a);
  found.push([(high + 0.05) / (low + 0.05), own.slice(0, 30), element.className.baseVal ?? element.className]);
}
return found.sort((a, b) => a[0] - b[0]);
"""


def missing() -> bool:
    """Whether there is no browser to test with."""
    return not (CHROMIUM and DRIVER and importlib.util.find_spec("selenium"))


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser that keeps what pages log."""
    from selenium import webdriver

    chosen = webdriver.ChromeOptions()
    chosen.binary_location = str(CHROMIUM)
    for word in QUIET.split():
        chosen.add_argument(f"--{word}")
    chosen.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(chosen, webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def sized(browser: Any, width: int, height: int, dark: bool = False) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    shown = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [shown]})
