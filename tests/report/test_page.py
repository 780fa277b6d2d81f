"""The report's page in a real browser: its slider, keyboard, colours, sizes and downloads; nothing is fetched, nothing is logged."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from house.browser import CONTRAST, missing, sized
from house.reports import history, records, write_run
from softprompt.report.page import page
from softprompt.report.runs import read_runs

pytestmark = pytest.mark.skipif(missing(), reason="needs Debian's chromium and chromium-driver")

# what a click on a button would save
SAVED = """
const [button, done] = arguments;
const blobs = new Map(), make = URL.createObjectURL;
URL.createObjectURL = (blob) => { const url = make(blob); blobs.set(url, blob); return url; };
HTMLAnchorElement.prototype.click = async function () {
  const blob = blobs.get(this.href), bytes = new Uint8Array(await blob.arrayBuffer());
  done([this.download, blob.type, btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join(""))]);
};
button.click();
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two runs with a structural evolution (one of two layers), and one with neither that nor a search."""
    folder = tmp_path_factory.mktemp("runs")
    gates = {"mechanism": {"gates": [0.4, 0.3, 0.2, 0.1], "fusion_entropy": 0.8}}
    runs = [
        write_run(folder / "one", history(12, ts_loss=0.5), records(6, 12, layers=2), **gates),
        write_run(folder / "two", history(12, **{"share of ts_loss": 0.3}), records(4, 1, seed=1)),
        write_run(folder / "bare", history(3)),
    ]
    path = folder / "report.html"
    path.write_text(page(read_runs(runs)))
    return path.as_uri()


def part(browser: Any, name: str, place: int = 0) -> Any:
    return browser.find_elements("css selector", f'.evolution [data-part="{name}"]')[place]


def drawn(browser: Any, name: str, place: int = 0) -> str:
    return str(part(browser, name, place).find_element("tag name", "svg").get_attribute("innerHTML"))


def test_nothing_is_fetched_and_nothing_is_logged(browser: Any, written: str) -> None:
    sized(browser, 1280, 900)
    browser.get(written)
    assert browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    assert browser.get_log("browser") == []
    assert browser.title == "Runs"


def test_the_slider_moves_every_figure(browser: Any, written: str) -> None:
    from selenium.webdriver.common.keys import Keys

    sized(browser, 1280, 900)
    browser.get(written)
    slider, names = part(browser, "step"), ("map", "barcode", "diagram", "measures")
    assert part(browser, "said").text == "step 50"
    before = {name: drawn(browser, name) for name in names}
    assert before["map"].count("<circle") == 12 and before["map"].count('class="tree"') == 11
    slider.send_keys(Keys.HOME)
    assert part(browser, "said").text == "step 0" and slider.get_attribute("aria-valuetext") == "step 0"
    assert all(drawn(browser, name) != before[name] for name in names)
    slider.send_keys(Keys.END)
    assert {name: drawn(browser, name) for name in names} == before
    scale = part(browser, "scale")
    scale.send_keys(Keys.HOME)
    assert 'class="edge"' not in drawn(browser, "map")
    scale.send_keys(Keys.END)
    assert drawn(browser, "map").count('class="edge"') > 11
    layer = part(browser, "layer")
    layer.send_keys(Keys.ARROW_DOWN)
    assert layer.get_attribute("value") == "1" and drawn(browser, "map") != before["map"]
    assert drawn(browser, "map", 0) != drawn(browser, "map", 1)  # each run has its own
    assert browser.get_log("browser") == []


def test_the_play_button_walks_to_the_end_and_stops(browser: Any, written: str) -> None:
    browser.get(written)
    play = part(browser, "play")
    play.click()
    assert play.text == "Pause"
    until = time.monotonic() + 20
    while play.text == "Pause" and time.monotonic() < until:
        time.sleep(0.1)
    assert play.text == "Play" and part(browser, "said").text == "step 50"


def test_the_keyboard_alone_reaches_everything(browser: Any, written: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    sized(browser, 1280, 900)
    browser.get(written)
    every = "a[href], button, input, select, [tabindex='0']"
    count = browser.execute_script(f'return document.querySelectorAll("{every}").length')
    reached = set()
    for _ in range(count):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.add(
            browser.execute_script(f'return [...document.querySelectorAll("{every}")].indexOf(document.activeElement)')
        )
        ring = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none"
    assert reached == set(range(count)) and count > 40


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_the_contrast_of_wcag_aa(browser: Any, written: str, dark: bool) -> None:
    sized(browser, 1280, 900, dark)
    browser.get(written)
    found = browser.execute_script(CONTRAST)
    assert len(found) > 100
    low = [line for line in found if line[0] < 4.5]
    assert not low, low[:5]


@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_a_laptop(
    browser: Any, written: str, width: int, dark: bool, pytestconfig: pytest.Config
) -> None:
    """Pictures of it are kept in pytest's cache, to be looked at."""
    sized(browser, width, 900, dark)
    browser.get(written)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    if pytestconfig.cache is not None:
        kept = pytestconfig.cache.mkdir("screenshots")
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (kept / f"report-{width}-{'dark' if dark else 'light'}.png").write_bytes(base64.b64decode(shot["data"]))


def test_figures_are_saved_as_svg_png_and_csv(browser: Any, written: str) -> None:
    sized(browser, 1280, 900)
    browser.get(written)
    browser.set_script_timeout(20)

    def saved(figure: str, how: str) -> tuple[str, str, bytes]:
        browser.get(written)
        button = browser.find_element("css selector", f'figure[data-name="{figure}"] [data-save="{how}"]')
        name, kind, coded = browser.execute_async_script(SAVED, button)
        return name, kind, base64.b64decode(coded)

    name, kind, data = saved("dev-accuracy", "csv")
    assert (name, kind) == ("dev-accuracy.csv", "text/csv")
    lines = data.decode().splitlines()
    assert lines[0] == "series,step,accuracy" and "one,10,0.54" in lines and len(lines) == 1 + 12 + 12 + 3
    _, _, data = saved("map", "csv")
    assert data.decode().splitlines()[0] == "step,token,first,second" and len(data.decode().splitlines()) == 1 + 6 * 12
    name, kind, data = saved("map", "svg")
    assert kind == "image/svg+xml" and data.startswith(b"<svg") and b"fill: rgb(" in data and b"var(" not in data
    name, kind, data = saved("loss-and-its-terms", "png")
    assert (name, kind) == ("loss-and-its-terms.png", "image/png") and data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 1280


def test_text_of_a_user_runs_nowhere(browser: Any, tmp_path: Path) -> None:
    evil = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    log = [{"step": i, "loss": 1.0, evil: float(i), "eval_loss": 1.0, "eval_accuracy": 0.5} for i in (1, 2, 3)]
    folder = write_run(tmp_path / "<img src=x onerror='window.hacked=3'>", log, records(2, 3), source=evil, method=evil)
    path = tmp_path / "r.html"
    path.write_text(page(read_runs([folder])))
    browser.get(path.as_uri())
    part(browser, "play").click()
    time.sleep(0.5)
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.images.length") == 0
    assert browser.get_log("browser") == [], json.dumps(browser.get_log("browser"))
