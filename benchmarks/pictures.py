"""Make the pictures of the README: `make pictures`. They need Debian's chromium and chromium-driver, and some minutes of training."""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver

import softprompt
from softprompt.experiments.plots import accuracy_against_parameters, save_figure
from softprompt.experiments.records import read_cells
from softprompt.experiments.statistics import Scores

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
SHOWN = ("contrast", "prompt_tuning", "peft:prompt_tuning", "peft:lora, r = 1", "setfit", "probe")
QUIET = "headless=new no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update disable-sync"


def report(folder: Path) -> None:
    """The structural evolution of a prompt of EPT on the embedded messages, as the report shows it."""
    if not (folder / "result.json").is_file():
        flat = {"data": "messages", "label_column": "tone", "method": "ept", "num_virtual_tokens": 12, "max_steps": 200}
        flat |= {"eval_strategy": "steps", "eval_steps": 20, "save_steps": 20, "track": "topology", "max_length": 48}
        flat |= {"output_dir": str(folder), "seed": 13}
        softprompt.train(softprompt.RunOptions.from_flat(flat))
    softprompt.write_report([folder], page := folder.parent / "report.html")
    chosen = webdriver.ChromeOptions()
    for word in QUIET.split():
        chosen.add_argument(f"--{word}")
    browser = webdriver.Chrome(chosen, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.set_window_size(1200, 1000)
        browser.get(page.as_uri())
        browser.execute_script(
            "const scale = document.querySelector('[data-part=scale]');"
            "scale.value = 80; scale.dispatchEvent(new Event('input'))"
        )
        clip = browser.execute_script(
            "const r = document.querySelector('.evolution').getBoundingClientRect();"
            "return {x: r.x + scrollX - 12, y: r.y + scrollY - 30, width: r.width + 24, height: r.height + 42, scale: 1}"
        )
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        (PICTURES / "evolution.png").write_bytes(base64.b64decode(shot["data"]))
    finally:
        browser.quit()


def cost() -> None:
    """Accuracy with 16 rows per class against the number of trained parameters."""
    cells = read_cells(ROOT / "results" / "suites" / "few-shot-2026-11.jsonl")
    save_figure(accuracy_against_parameters(Scores(list(cells.values()), SHOWN)), PICTURES / "cost.png")


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    cost()
    with tempfile.TemporaryDirectory() as folder:
        report(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "ept")


if __name__ == "__main__":
    main()
