"""The server on the loopback: the official client, plain requests, limits, prompts that come and go."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import softprompt
from house.live import heads, live
from house.served import PROMPTS, ROWS, near, shelved, train_readers
from softprompt.serving.engine import (
    Limits,
    PromptEngine,
    Writing,
)
from softprompt.serving.http import Service
from softprompt.serving.http.metrics import Metrics

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("http")


@pytest.fixture(scope="module")
def readers(root: Path) -> dict[str, Path]:
    return train_readers(root, "plain", "deep", "pair", "tags", "several", "number")


@pytest.fixture(scope="module")
def reading(readers: dict[str, Path], root: Path) -> Iterator[str]:
    """Clients need "guest", prompts come and go with "chief"."""
    engine = PromptEngine(shelved(readers), watcher=Metrics()).start()
    service = Service(token="guest", admin_token="chief", prompts_dir=root / "prompts", body_bytes=4000, rows=8)
    with live(engine, service) as address:
        yield address


@pytest.fixture(scope="module")
def writing(writers: dict[str, Path]) -> Iterator[str]:
    engine = PromptEngine(shelved(writers), Limits(new_tokens=30)).start()
    engine.shelf.find("short").tokenizer.chat_template = TEMPLATE
    with live(engine) as address:
        yield address


def post(address: str, path: str, body: Any, token: str | None = "guest") -> httpx.Response:
    return httpx.post(f"{address}{path}", json=body, headers=heads(token), timeout=30)


def error(response: httpx.Response) -> str:
    return str(response.json()["error"]["message"])


# ---------------------------------------------------------------------- texts that are written


def test_the_official_client_completes(writing: str, writers: dict[str, Path]) -> None:
    client = openai.OpenAI(base_url=f"{writing}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["long", "short"]
    for name, folder in writers.items():
        alone = softprompt.Predictor(folder).predict([{"prompt": text} for text in PROMPTS], 9)
        made = client.completions.create(model=name, prompt=list(PROMPTS), max_tokens=9, temperature=0)
        assert [choice.text for choice in made.choices] == [row["completion"] for row in alone]
        assert made.usage is not None and made.usage.total_tokens > made.usage.completion_tokens > 0
        chunks = list(
            client.completions.create(
                model=name,
                prompt=list(PROMPTS),
                max_tokens=9,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        texts, reasons = ["", "", ""], [None, None, None]
        for chunk in chunks[:-1]:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]  # type: ignore[call-overload]
        assert texts == [choice.text for choice in made.choices]
        assert reasons == [choice.finish_reason for choice in made.choices]
        assert chunks[-1].usage == made.usage and not chunks[-1].choices


def test_the_official_client_chats_by_the_backbones_template(writing: str) -> None:
    client = openai.OpenAI(base_url=f"{writing}/v1", api_key="none")
    messages: Any = [
        {"role": "system", "content": "red"},
        {"role": "user", "content": [{"type": "text", "text": "dog"}]},
    ]
    asked = {"model": "short", "messages": messages, "temperature": 0, "max_completion_tokens": 5}
    made = client.chat.completions.create(**asked)
    plain = client.completions.create(model="short", prompt="red dog ", max_tokens=5, temperature=0)
    assert made.choices[0].message.content == plain.choices[0].text
    streamed = list(client.chat.completions.create(**asked, stream=True))
    assert streamed[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == plain.choices[0].text
    whole = client.chat.completions.create(model="short", messages=messages, temperature=0)
    assert whole.usage is not None and whole.usage.completion_tokens <= 30  # as many as the server allows


def test_the_official_client_gets_errors_of_its_own_classes(writing: str, reading: str) -> None:
    client = openai.OpenAI(base_url=f"{writing}/v1", api_key="none", max_retries=0)
    with pytest.raises(
        openai.NotFoundError, match=r"model 'shart': expected one of long, short\. Did you mean 'short'\?"
    ):
        client.completions.create(model="shart", prompt="x")
    with pytest.raises(openai.BadRequestError, match="expected at most 30 new tokens behind 2 of text"):
        client.completions.create(model="short", prompt="red dog", max_tokens=31)
    with pytest.raises(openai.BadRequestError, match="n: expected no such setting, which is not served here, got 2"):
        client.completions.create(model="short", prompt="red dog", n=2)
    with pytest.raises(openai.BadRequestError, match="guided_choice: there is no such field here"):
        client.completions.create(model="short", prompt="red dog", extra_body={"guided_choice": ["a"]})
    with pytest.raises(openai.BadRequestError, match="expected at most 30 new tokens"):
        client.completions.create(model="short", prompt="red dog", max_tokens=31, stream=True)
    with pytest.raises(openai.AuthenticationError, match="expected the header Authorization: Bearer TOKEN"):
        openai.OpenAI(base_url=f"{reading}/v1", api_key="wrong").models.list()
    assert next(m.id for m in openai.OpenAI(base_url=f"{reading}/v1", api_key="guest").models.list()) == "deep"


def test_a_chat_that_ends_with_an_answer_is_refused(writing: str) -> None:
    messages = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "dog"}]
    said = post(writing, "/v1/chat/completions", {"model": "short", "messages": messages}, None)
    assert (said.status_code, "expected a message to answer at the end of messages" in error(said)) == (400, True)


def test_a_backbone_without_a_chat_template_and_a_template_that_refuses_are_said(
    writing: str, writers: dict[str, Path]
) -> None:
    engine = PromptEngine(shelved({"short": writers["short"]})).start()
    body = {"model": "short", "messages": [{"role": "user", "content": "red"}]}
    with live(engine) as address:
        said = post(address, "/v1/chat/completions", body, None)
        assert (said.status_code, "has no chat template, which says how messages become a text" in error(said)) == (
            400,
            True,
        )
        engine.shelf.find("short").tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
        said = post(address, "/v1/chat/completions", body, None)
        assert (said.status_code, "roles must alternate" in error(said)) == (400, True)


# ---------------------------------------------------------------------- texts that are read


def test_texts_pairs_and_words_are_classified_as_offline(reading: str, readers: dict[str, Path]) -> None:
    for name, folder in readers.items():
        alone = softprompt.Predictor(folder).predict(ROWS[name])
        made = post(reading, "/v1/classify", {"model": name, "input": ROWS[name]}).json()
        assert [row["index"] for row in made["data"]] == [0, 1, 2]
        for row, expected in zip(made["data"], alone, strict=True):
            if name in ("tags", "number"):
                assert near({key: row[key] for key in expected}, expected)
            else:
                label = "labels" if name == "several" else "label"
                assert row[label] == expected[label] and row["num_classes"] == 3
                assert near(dict(zip(made["classes"], row["probs"], strict=True)), expected["scores"])
    one = post(reading, "/v1/classify", {"model": "plain", "input": ROWS["plain"][0]["text"]})
    assert (
        one.json()["data"][0]["label"] == softprompt.Predictor(readers["plain"]).predict(ROWS["plain"][:1])[0]["label"]
    )
    assert one.headers["server-timing"].startswith("queue;dur=")


def test_predict_speaks_as_text_embeddings_inference(reading: str, readers: dict[str, Path]) -> None:
    text = ROWS["plain"][0]["text"]
    alone = softprompt.Predictor(readers["plain"]).predict([{"text": text}])[0]
    made = post(reading, "/predict", {"inputs": text, "model": "plain"}).json()
    assert [row["label"] for row in made] == sorted(alone["scores"], key=lambda label: -alone["scores"][label])
    assert made[0]["score"] == pytest.approx(alone["score"], abs=1e-5)
    pair = ROWS["pair"][0]
    (ranked,) = post(reading, "/predict", {"inputs": [[pair["text"], pair["text_pair"]]], "model": "pair"}).json()
    assert ranked[0]["label"] == softprompt.Predictor(readers["pair"]).predict([pair])[0]["label"]
    said = post(reading, "/predict", {"inputs": text})
    assert said.status_code == 400 and "there are deep, pair, plain" in error(said)


@pytest.mark.parametrize(
    "path, body, status, said",
    [
        ("/v1/classify", {"model": "plain", "input": []}, 400, "input"),
        ("/v1/classify", {"model": "plain", "input": ""}, 400, "input: expected a text, an object with text"),
        (
            "/v1/classify",
            {"model": "plain", "input": [{"text": "a", "zzz": 1}]},
            400,
            "zzz: there is no such field here",
        ),
        (
            "/v1/classify",
            {"model": "tags", "input": {"text": "a", "tokens": ["a"]}},
            400,
            "input: expected a text, an object",
        ),
        ("/predict", {"model": "plain", "inputs": ["a", "b"]}, 400, 'such as [["a"], ["b"]]'),
        ("/v1/classify", {"model": "plain", "input": " "}, 400, "expected a non-empty 'text', got ' '"),
        ("/v1/classify", {"model": "pair", "input": "red"}, 400, "expected a non-empty 'text_pair'"),
        (
            "/v1/classify",
            {"model": "plain", "input": ["red"] * 9},
            400,
            "expected at most 8 rows in one request, got 9",
        ),
        ("/v1/classify", {"model": "plain", "input": "red " * 100}, 400, "expected at most 24 tokens for 'plain'"),
        ("/v1/classify", {"model": "plain", "input": "red " * 1000}, 413, "expected a body of at most 4000 bytes"),
        ("/v1/classify", {"model": "plain", "input": [1]}, 400, "input"),
        ("/v1/classify", {"input": "red"}, 400, "model: expected a value, got none"),
        ("/v1/classify", {"model": "plain", "input": "\ud800"}, 400, ""),
        (
            "/v1/completions",
            {"model": "plain", "prompt": "x"},
            400,
            "is for classification: expected a request to /v1/classify",
        ),
        ("/predict", {"inputs": "x", "model": "tags"}, 400, "'tags' is for tokens"),
        ("/v1/nothing", {}, 404, "no such path: /v1/nothing; /v1/models lists what is served"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(reading: str, path: str, body: Any, status: int, said: str) -> None:
    sent = httpx.post(
        f"{reading}{path}", content=json.dumps(body), headers={**heads("guest"), "content-type": "application/json"}
    )
    assert (sent.status_code, said in error(sent)) == (status, True), sent.text


def test_a_body_that_is_no_json_or_grows_too_long_is_refused(reading: str) -> None:
    sent = httpx.post(
        f"{reading}/v1/classify", content=b"{", headers={**heads("guest"), "content-type": "application/json"}
    )
    assert sent.status_code == 400 and "JSON" in error(sent)

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    sent = httpx.post(
        f"{reading}/v1/classify", content=chunks(), headers={**heads("guest"), "content-type": "application/json"}
    )
    assert sent.status_code == 413 and "at most 4000 bytes" in error(sent)
    assert httpx.get(f"{reading}/v1/classify", headers=heads("guest")).status_code == 405


def test_texts_that_are_cut_are_asked_for(reading: str, readers: dict[str, Path]) -> None:
    long = "red dog " * 30
    made = post(reading, "/v1/classify", {"model": "plain", "input": long, "truncate": True}).json()
    assert made["data"][0]["label"] == softprompt.Predictor(readers["plain"]).predict([{"text": long}])[0]["label"]


def test_without_the_token_nothing_but_health_and_the_page_is_there(reading: str) -> None:
    for path in ("/v1/models", "/metrics", "/v1/models/plain"):
        for token in (None, "wrong", "guest2", "chief"):
            assert httpx.get(f"{reading}{path}", headers=heads(token)).status_code == 401
    assert httpx.get(f"{reading}/healthz").json() == {"status": "ok"}
    assert "<title>softprompt</title>" in httpx.get(reading).text
    assert post(reading, "/v1/classify", {"model": "plain", "input": "x"}, None).status_code == 401


# ---------------------------------------------------------------------- prompts that come and go


def test_prompts_come_and_go_by_the_admin_token_from_the_operators_folder(reading: str, root: Path) -> None:
    for token in (None, "guest"):
        assert post(reading, "/admin/prompts", {"name": "more", "folder": "plain"}, token).status_code == 401
    row = {"model": "more", "input": "red dog"}
    assert post(reading, "/v1/classify", row).status_code == 404
    made = post(reading, "/admin/prompts", {"name": "more", "folder": "plain"}, "chief")
    assert made.status_code == 201 and made.json()["id"] == "more"
    assert post(reading, "/v1/classify", row).status_code == 200
    assert "softprompt_requests_total" in (page := httpx.get(f"{reading}/metrics", headers=heads("guest")).text)
    assert 'prompt="more"' in page and "softprompt_prompts 7.0" in page
    taken = post(reading, "/admin/prompts", {"name": "more", "folder": "plain"}, "chief")
    assert (taken.status_code, "'more' is served already" in error(taken)) == (409, True)
    gone = httpx.delete(f"{reading}/admin/prompts/more", headers=heads("chief"))
    assert gone.json()["deleted"] is True
    assert post(reading, "/v1/classify", row).status_code == 404
    assert 'prompt="more"' not in httpx.get(f"{reading}/metrics", headers=heads("guest")).text
    assert httpx.delete(f"{reading}/admin/prompts/more", headers=heads("chief")).status_code == 404


def test_no_path_and_no_link_leads_out_of_the_operators_folder(reading: str, root: Path) -> None:
    outside = root / "outside"
    shutil.copytree(root / "prompts" / "plain", outside / "plain", dirs_exist_ok=True)
    (root / "prompts" / "link").symlink_to(outside / "plain")
    (root / "prompts" / "empty").mkdir(exist_ok=True)
    for folder in ("../outside/plain", str(outside / "plain"), "..", ".", "link", "nothing", "plain/", "empty"):
        said = post(reading, "/admin/prompts", {"name": "more", "folder": folder}, "chief")
        assert (said.status_code, "expected the name of an adapter's folder of the operator's" in error(said)) == (
            404,
            True,
        ), folder
    assert post(reading, "/admin/prompts", {"name": "a/b", "folder": "plain"}, "chief").status_code == 400


def test_without_an_admin_token_nobody_adds_a_prompt(writing: str) -> None:
    said = post(writing, "/admin/prompts", {"name": "more"}, None)
    assert said.status_code == 403 and "without --prompts-dir or without an admin token" in error(said)


# ---------------------------------------------------------------------- too much, too late, and gone


@pytest.fixture
def held(readers: dict[str, Path]) -> Iterator[tuple[str, PromptEngine, threading.Event]]:
    """A server whose model stands still until the event."""
    shelf = shelved({"plain": readers["plain"]})
    let, lane = threading.Event(), shelf.find("plain").lane
    kept = lane.logits

    def logits(rows: Any) -> Any:
        let.wait(20)
        return kept(rows)

    lane.logits = logits  # type: ignore[method-assign]
    engine = PromptEngine(shelf, Limits(waiting_rows=2, timeout_s=1.0), watcher=Metrics()).start()
    with live(engine) as address:
        yield address, engine, let
        let.set()


def until(what: Any) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_too_much_is_429_and_too_late_is_504(held: tuple[str, PromptEngine, threading.Event]) -> None:
    address, engine, let = held
    answers: list[httpx.Response] = []
    body = {"model": "plain", "input": "red dog"}
    threads = [
        threading.Thread(target=lambda: answers.append(post(address, "/v1/classify", body, None))) for _ in range(3)
    ]
    threads[0].start()
    until(lambda: engine.shelf.find("plain").pending == 1 and engine.waiting == 0)
    for thread in threads[1:]:
        thread.start()
    until(lambda: engine.waiting == 2)
    refused = post(address, "/v1/classify", body, None)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert "2 rows wait already, and at most 2 may" in error(refused)
    time.sleep(1.1)
    let.set()
    for thread in threads:
        thread.join(20)
    assert sorted(answer.status_code for answer in answers) == [200, 504, 504]
    assert any("no answer within 1 s" in answer.text for answer in answers)


def test_rows_of_a_client_that_has_gone_are_dropped(held: tuple[str, PromptEngine, threading.Event]) -> None:
    address, engine, let = held
    body = json.dumps({"model": "plain", "input": ["red dog"]}).encode()
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = address.removeprefix("http://").split(":")

    def connected() -> socket.socket:
        made = socket.create_connection((host, int(port)))
        made.sendall(head.encode() + body)
        return made

    first = connected()
    until(lambda: engine.shelf.find("plain").pending == 1 and engine.waiting == 0)
    second = connected()
    until(lambda: engine.waiting == 1)
    second.close()
    until(lambda: any(job.answer.cancelled() for job in list(engine._unanswered)))
    let.set()
    until(lambda: engine.shelf.find("plain").pending == 0)
    ends = engine.watcher.requests.collect()[0].samples  # type: ignore[attr-defined]
    assert {sample.labels["end"] for sample in ends if sample.name.endswith("_total")} == {"answered", "cancelled"}
    first.close()


def test_a_stream_that_nobody_reads_ends_the_writing(writers: dict[str, Path]) -> None:
    engine = PromptEngine(shelved({"long": writers["long"]}), Limits(new_tokens=50))
    engine.shelf.find("long").model.generation_config.eos_token_id = None  # it goes on
    kept = engine.step
    engine.step = lambda: time.sleep(0.02) or kept()  # type: ignore[func-returns-value, method-assign]
    body = {"model": "long", "prompt": "red dog", "max_tokens": 50, "stream": True, "temperature": 0}
    with live(engine.start()) as address:
        with httpx.stream("POST", f"{address}/v1/completions", json=body) as response:
            next(response.iter_text())
        until(lambda: engine.shelf.find("long").pending == 0)
        assert engine.writing == 0


def test_a_server_that_closes_answers_what_is_in_flight(readers: dict[str, Path]) -> None:
    engine = PromptEngine(shelved({"plain": readers["plain"]})).start()
    answers: list[httpx.Response] = []
    body = {"model": "plain", "input": ["red dog"] * 60}
    with live(engine) as address:
        thread = threading.Thread(target=lambda: answers.append(post(address, "/v1/classify", body, None)))
        thread.start()
        until(lambda: engine.shelf.find("plain").pending > 0 or answers)
    thread.join(20)
    assert answers[0].status_code == 200 and len(answers[0].json()["data"]) == 60
    assert not engine.is_open


@pytest.mark.parametrize("kind", ["text/plain", None, "gzip"])
def test_a_body_that_is_no_json_by_its_headers_is_said(reading: str, kind: str | None) -> None:
    given = (
        {"content-type": "application/json", "content-encoding": "gzip"}
        if kind == "gzip"
        else {"content-type": kind or ""}
    )
    sent = httpx.post(
        f"{reading}/v1/classify", content=b'{"model": "plain", "input": "x"}', headers={**heads("guest"), **given}
    )
    assert sent.status_code == 415
    assert (
        "send it uncompressed" if kind == "gzip" else "expected the header Content-Type: application/json"
    ) in error(sent)


def test_settings_that_change_nothing_are_taken(writing: str) -> None:
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "temperature": None,
        "top_p": None,
        "stop": None,
    }
    body = {"model": "short", "max_tokens": 3, **neutral}
    own = {"prompt": "red dog", "echo": False, "best_of": 1, "logprobs": None, "suffix": None}
    assert post(writing, "/v1/completions", {**body, **own}, None).status_code == 200
    chat = {"messages": [{"role": "user", "content": "red dog"}], "tools": [], "response_format": {"type": "text"}}
    assert post(writing, "/v1/chat/completions", {**body, **chat, "logprobs": False}, None).status_code == 200
    said = post(writing, "/v1/completions", {**body, **own, "frequency_penalty": 1}, None)
    assert (said.status_code, "frequency_penalty: expected no such setting" in error(said)) == (400, True)


def test_two_that_add_one_name_at_once_get_one_prompt(reading: str) -> None:
    answers: list[httpx.Response] = []
    body = {"name": "twice", "folder": "plain"}
    threads = [
        threading.Thread(target=lambda: answers.append(post(reading, "/admin/prompts", body, "chief")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert httpx.delete(f"{reading}/admin/prompts/twice", headers=heads("chief")).status_code == 200


# ---------------------------------------------------------------------- numbers, limits and states of answers and counters


def test_usage_counts_what_was_read_and_what_was_written(writing: str) -> None:
    body = {"model": "short", "prompt": ["red dog", "red"], "max_tokens": 1, "temperature": 0}
    made = post(writing, "/v1/completions", body, None).json()
    assert made["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_max_tokens_of_a_chat_by_either_name(writing: str) -> None:
    chat: dict[str, Any] = {"model": "short", "messages": [{"role": "user", "content": "red dog"}], "temperature": 0}
    for name in ("max_tokens", "max_completion_tokens"):
        made = post(writing, "/v1/chat/completions", {**chat, name: 1}, None).json()
        assert made["usage"]["completion_tokens"] == 1
    said = post(writing, "/v1/chat/completions", {**chat, "max_tokens": 1, "max_completion_tokens": 1}, None)
    assert (said.status_code, "are one setting: send one of them" in error(said)) == (400, True)
    said = post(writing, "/v1/chat/completions", {**chat, "stream_options": {"include_usage": True}}, None)
    assert (said.status_code, "expected stream=true beside it" in error(said)) == (400, True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_prompt_is_cut_where_that_is_asked_for(writing: str, stream: bool) -> None:
    long = {"model": "short", "prompt": "red dog " * 30, "max_tokens": 2, "stream": stream}
    assert post(writing, "/v1/completions", long, None).status_code == 400
    assert post(writing, "/v1/completions", {**long, "truncate": True}, None).status_code == 200


def test_predict_cuts_where_that_is_asked_for(reading: str) -> None:
    body = {"model": "plain", "inputs": "red dog " * 30}
    assert post(reading, "/predict", body).status_code == 400
    assert post(reading, "/predict", {**body, "truncate": True}).status_code == 200


def test_a_model_says_what_it_reads(reading: str) -> None:
    said = {n: httpx.get(f"{reading}/v1/models/{n}", headers=heads("guest")).json() for n in ("plain", "pair", "deep")}
    assert {name: one["texts"] for name, one in said.items()} == {"plain": 1, "pair": 2, "deep": 1}
    assert {name: one["compiled"] for name, one in said.items()} == {"plain": False, "pair": False, "deep": True}
    assert all(one["max_length"] == 24 and one["task"] == "classification" for one in said.values())


def test_a_prompt_is_added_from_the_folder_of_its_name(reading: str, root: Path) -> None:
    shutil.copytree(root / "prompts" / "pair", root / "prompts" / "fresh")
    made = post(reading, "/admin/prompts", {"name": "fresh"}, "chief")
    assert made.status_code == 201 and made.json()["texts"] == 2
    httpx.delete(f"{reading}/admin/prompts/fresh", headers=heads("chief"))


def test_a_row_counts_its_texts_their_tokens_and_its_positions(readers) -> None:
    shelf = shelved(readers)
    row = {"text": "red dog", "text_pair": "It was good"}
    made = {n: shelf.find(n).encode(row if n == "pair" else {"text": "red dog"}, Writing(), False) for n in readers}
    assert (made["plain"].tokens, made["plain"].texts) == (4, 1)
    assert (made["pair"].tokens, made["pair"].texts) == (9, 2)
    virtual = {n: shelf.find(n).model.peft_config[shelf.find(n).key].num_virtual_tokens for n in readers}
    assert made["plain"].length == 4 + virtual["plain"] and made["pair"].length == 5 + virtual["pair"]
    assert made["deep"].length == 4  # compiled: no position of the prompt is run
