"""The page of a server in a real browser: every prompt is listed and can be tried, and the page says what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import softprompt
from house.browser import CONTRAST, missing, sized
from house.live import live
from house.runs import train_shortly
from house.served import shelved, train_readers, train_writers
from house.tiny import save_talker, write_chat
from softprompt.serving.engine import PromptEngine
from softprompt.serving.http import Service

pytestmark = pytest.mark.skipif(missing(), reason="needs Debian's chromium and chromium-driver")


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train_readers(tmp_path_factory.mktemp("page"), "plain", "pair", "tags", "number")


@pytest.fixture(scope="module")
def reading(readers: dict[str, Path]) -> Iterator[str]:
    with live(PromptEngine(shelved(readers)).start(), Service(token="guest")) as address:
        yield address


def until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + 20
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def part(browser: Any, prompt: str, name: str) -> Any:
    return browser.find_element("css selector", f'[data-prompt="{prompt}"] {name}')


def tried(browser: Any, prompt: str, *texts: str) -> str:
    """What the page shows when a prompt is tried on these texts."""
    boxes = browser.find_elements("css selector", f'[data-prompt="{prompt}"] textarea')
    for box, text in zip(boxes, texts, strict=False):
        box.clear()
        box.send_keys(text)
    part(browser, prompt, "button").click()
    return str(until(lambda: part(browser, prompt, "output").text)).strip()


def test_every_prompt_is_listed_and_tried_and_its_cost_is_shown(
    browser: Any, reading: str, readers: dict[str, Path]
) -> None:
    sized(browser, 1280, 900)
    browser.get(reading)
    assert "expected the header Authorization" in until(
        lambda: browser.find_element("id", "state").text.replace("looking for prompts", "")
    )
    field = browser.find_element("id", "token")
    field.send_keys("guest\t")
    until(lambda: browser.find_element("id", "state").text == "4 prompts on one backbone")
    expected = softprompt.Predictor(readers["plain"]).predict([{"text": "red dog runs"}])[0]
    shown = tried(browser, "plain", "red dog runs").splitlines()
    assert shown[0] == f"{expected['label']} {expected['score']:.3f}" and len(shown) == 3
    assert "5 tokens read, 0 written; queue" in until(lambda: part(browser, "plain", ".cost").text)
    pair = softprompt.Predictor(readers["pair"]).predict([{"text": "red dog", "text_pair": "It was good"}])[0]
    assert tried(browser, "pair", "red dog", "It was good").startswith(pair["label"])
    assert tried(browser, "tags", "red dog runs")
    number = softprompt.Predictor(readers["number"]).predict([{"text": "red dog"}])[0]["value"]
    assert float(tried(browser, "number", "red dog")) == pytest.approx(number, abs=1e-5)
    assert not part(browser, "plain", ".second").is_displayed() and part(browser, "pair", ".second").is_displayed()
    assert [line for line in browser.get_log("browser") if "401" not in line["message"]] == []


def test_what_is_wrong_is_shown_where_it_was_asked(browser: Any, reading: str) -> None:
    browser.get(reading)
    browser.find_element("id", "token").send_keys("guest\t")
    until(lambda: browser.find_elements("css selector", "[data-prompt=plain]"))
    said = tried(browser, "plain", "red dog " * 40)
    assert said.startswith("expected at most 24 tokens for 'plain'")
    assert part(browser, "plain", "output").get_attribute("class") == "error"


def test_a_text_is_shown_as_text(browser: Any, tmp_path: Path) -> None:
    writers = train_writers(tmp_path)
    with live(PromptEngine(shelved(writers)).start()) as address:
        browser.get(address)
        until(lambda: browser.find_elements("css selector", "[data-prompt=short]"))
        part(browser, "short", "textarea").send_keys("<b>red</b> dog")
        part(browser, "short", "button").click()
        until(lambda: "written" in part(browser, "short", ".cost").text)
        assert not browser.find_elements("css selector", "output b")


def test_a_chat_is_answered(browser: Any, tmp_path: Path) -> None:
    talk = train_shortly(save_talker(tmp_path / "talker"), write_chat(tmp_path / "talks"), tmp_path / "talk")
    with live(PromptEngine(shelved({"talk": talk})).start()) as address:
        browser.get(address)
        until(lambda: browser.find_elements("css selector", "[data-prompt=talk]"))
        part(browser, "talk", "textarea").send_keys("red dog")
        part(browser, "talk", "button").click()
        assert "written" in until(lambda: part(browser, "talk", ".cost").text)
        assert part(browser, "talk", "output").get_attribute("class") != "error"


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_read_on_a_phone_and_in_the_dark(browser: Any, reading: str, dark: bool) -> None:
    sized(browser, 380, 800, dark)
    browser.get(reading)
    browser.find_element("id", "token").send_keys("guest\t")
    until(lambda: browser.find_elements("css selector", "[data-prompt=plain]"))
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    ratio, text, _ = browser.execute_script(CONTRAST)[0]
    assert ratio >= 4.5, text
