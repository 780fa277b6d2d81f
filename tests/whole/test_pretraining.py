"""Pre-training: what it reads, what it starts from, what it computes, and that it goes on exactly."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
import transformers as tf
import yaml
from safetensors.torch import load_file

import pretraining.train
from pretraining.corpus import Blocks, Tokens, check_mixture, documents, encoded
from pretraining.judge import judge
from pretraining.models import make_model
from pretraining.ngrams import NGrams
from pretraining.options import HERE, check_options, read_options
from pretraining.train import Collate, main, newest
from pretraining.vocabulary import counted, cut, kept
from softprompt import SoftPromptError
from softprompt._types import IGNORED
from softprompt.models.embedded import embedded_backbone

SENTENCES = ("the cat sat on the mat and watched birds .", "a film of great charm , told badly .", "rivers run north .")


@pytest.fixture(scope="module")
def tokenizer():
    return tf.AutoTokenizer.from_pretrained(embedded_backbone())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """300 documents of three sentences each, in two files, one of them in a folder."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"Number {i}\n" + " ".join(SENTENCES[i % 3 :] + SENTENCES[: i % 3]) for i in range(300)]
    (folder / "more").mkdir()
    for name, part in (("a", texts[:200]), ("more/b", texts[200:])):
        (folder / f"{name}.txt").write_text("\n\n".join(part) + "\n\n")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory, tokenizer):
    """A folder as that of the embedded encoder: its tokenizer, and a random encoder of two layers."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    tf.BertModel(tf.BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def ids(corpus, tokenizer):
    return kept(tokenizer, counted(corpus, tokenizer), 240)


def test_what_is_held_out_goes_by_the_document(corpus, tmp_path):
    found = {text: held for text, held, _ in documents(corpus)}
    assert len(found) == 300 and 0 < sum(found.values()) < 15
    shutil.copy(corpus / "more" / "b.txt", tmp_path / "z.txt")
    assert {text: held for text, held, _ in documents(tmp_path)}.items() <= found.items()


def test_parts_of_a_corpus_are_its_folders(corpus, tokenizer, ids, tmp_path):
    assert Counter(part for *_, part in documents(corpus)) == {".": 200, "more": 100}
    tokens = encoded(corpus, cut(tokenizer, ids), tmp_path)
    assert list(tokens.parts) == [".", "more"] and tokens.parts["more"][1] == len(tokens.train)
    start = tokens.parts["more"][0]
    assert start == tokens.parts["."][1] and tokens.train[start - 1] == cut(tokenizer, ids).sep_token_id


def test_a_mixture_is_kept_and_a_small_part_is_gone_through_again(tokenizer):
    tokens, parts = np.arange(1600, dtype=np.uint16), {"a": (0, 1400), "b": (1400, 1600)}
    blocks = Blocks(tokens, 18, 0, 0, [], 5, 40, parts, {"a": 0.5, "b": 0.5})
    rows = [blocks[i] for i in range(len(blocks))]
    from_b = [row for row in rows if row["input_ids"][1] >= 1400]
    assert len(rows) == 40 and len(from_b) == 20
    begins = Counter(int(row["input_ids"][1]) for row in from_b)
    assert len(begins) == 12 and set(begins.values()) <= {1, 2}  # 12 blocks lie in b whole
    assert len({row["number"] for row in rows}) == 40, "a second round has other numbers, so other masks"
    with pytest.raises(SoftPromptError, match="mixture: b has no block of 258 tokens"):
        Blocks(tokens, 258, 0, 0, [], 5, 4, parts, {"a": 0.5, "b": 0.5})


def test_blocks_without_a_token_to_learn_are_left_out():
    """Of ten blocks of two tokens in two parts, two in the first and one in the second are special tokens alone."""
    tokens, parts = np.arange(5, 25, dtype=np.uint16), {"a": (0, 10), "b": (10, 20)}
    tokens[[2, 3, 8, 9, 13, 18, 19]] = [1, 3, 3, 1, 1, 1, 1]
    blocks = Blocks(tokens, 4, 2, 3, [1, 3], 0)
    assert sorted(blocks.order) == [0, 2, 3, 5, 6, 7, 8] and blocks.left_out == 3
    mixed = Blocks(tokens, 4, 2, 3, [1, 3], 0, 4, parts, {"a": 0.75, "b": 0.25})
    assert {number for number in mixed.order if number < 5} == {0, 2, 3} and mixed.left_out == 3
    with pytest.raises(SoftPromptError, match="expected 8 blocks of 4 tokens, the corpus has 7; "):
        Blocks(tokens, 4, 2, 3, [1, 3], 0, 8)


def test_a_run_says_how_many_blocks_had_no_token_to_learn(sized, corpus, capsys, tmp_path):
    shutil.copytree(corpus, tmp_path / "runes")
    (tmp_path / "runes" / "z.txt").write_text("\n\n".join(f"{i} " + "ᚠᚢ " * 40 for i in range(120)))
    output = sized(corpus=tmp_path / "runes")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["blocks_left_out"]
    ids = np.fromfile(output / "work" / "tokens" / "train.bin", np.uint16)
    unknown = [set(ids[i : i + 14].tolist()) <= {0, 1, 2, 3, 4} for i in range(0, len(ids) - 13, 14)]
    assert told == json.loads((output / "curve.json").read_text())["blocks_left_out"] == sum(unknown) > 100


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_run_computes_in_the_precision_that_it_names(precision, sized, monkeypatch):
    computed, compute = set(), torch.nn.Linear.forward

    def watched(self, given):
        made = compute(self, given)
        if torch.is_grad_enabled():  # a step, not what is judged
            computed.add(str(made.dtype))
        return made

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    sized("--set", f"precision={precision}")
    assert computed == {f"torch.{precision}"}


def test_a_cut_vocabulary_spells_every_word(corpus, tokenizer, ids):
    less = cut(tokenizer, ids)
    assert len(less) == len(ids) <= 240
    row = less("the cat sat on great mats", "rivers")
    names = less.convert_ids_to_tokens(row["input_ids"])
    assert names == ["[CLS]", "the", "cat", "sat", "on", "great", "mat", "##s", "[SEP]", "rivers", "[SEP]"]
    assert sum(row["token_type_ids"]) == 2
    assert less.decode(less("watched charm")["input_ids"], skip_special_tokens=True) == "watched charm"
    with pytest.raises(SoftPromptError, match=r"vocabulary=9: expected at least \d{3}, the special tokens"):
        kept(tokenizer, counted(corpus, tokenizer), 9)


def test_blocks_repeat_no_token_and_are_framed(corpus, tokenizer, ids, tmp_path):
    tokens = encoded(corpus, cut(tokenizer, ids), tmp_path)
    blocks = Blocks(tokens.train, 16, 2, 3, [], seed=0)
    rows = sorted((blocks[i] for i in range(len(blocks))), key=lambda row: row["number"])
    assert all(row["input_ids"][0] == 2 and row["input_ids"][-1] == 3 for row in rows)
    joined = np.concatenate([row["input_ids"][1:-1] for row in rows])
    assert np.array_equal(joined, tokens.train[: len(joined)]) and len(tokens.train) - len(joined) < 14
    written = (tmp_path / "train.bin").stat().st_mtime_ns
    encoded(corpus, cut(tokenizer, ids), tmp_path)
    assert (tmp_path / "train.bin").stat().st_mtime_ns == written
    with pytest.raises(SoftPromptError, match=r"expected 100000 blocks of 16 tokens, the corpus has .* ask for fewer"):
        Blocks(tokens.train, 16, 2, 3, [], seed=0, count=100_000)


def test_masks_are_those_of_the_row_whatever_the_batch(tokenizer, ids):
    less = cut(tokenizer, ids)
    collate = Collate("masked", less, 0.15, seed=1)
    rows = [{"input_ids": np.arange(100) % (len(less) - 5) + 5, "number": n} for n in range(200)]
    together, alone = collate(rows), collate(rows[7:8])
    assert all(torch.equal(together[key][7:8], alone[key]) for key in together)
    hidden = together["labels"] != IGNORED
    assert (hidden.sum(1) == 15).all()
    shown, real = together["input_ids"][hidden], together["labels"][hidden]
    assert (shown == less.mask_token_id).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (shown == real).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(together["input_ids"][~hidden], torch.tensor(np.stack([r["input_ids"] for r in rows]))[~hidden])


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_the_loss_is_that_of_the_stock_model_and_the_start_is_the_encoder(kind, small, tokenizer, ids, tmp_path):
    encoder = tf.AutoModel.from_pretrained(small)
    model = make_model(kind, encoder, ids, 32).eval()
    less = cut(tokenizer, ids)
    rows = [{"input_ids": np.arange(5, 37) + i, "number": i} for i in range(3)]
    batch = Collate(kind, less, 0.2, 0)(rows)
    loss = model(**batch).loss
    loss.backward()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    model.save_pretrained(tmp_path)
    stock = (tf.AutoModelForMaskedLM if kind == "masked" else tf.AutoModelForCausalLM).from_pretrained(tmp_path).eval()
    assert type(stock) is (tf.BertForMaskedLM if kind == "masked" else tf.BertLMHeadModel)
    expected = stock(**batch).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for (name, ours), theirs in zip(model.named_parameters(), stock.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name, rtol=1e-5, atol=1e-7)
    if kind == "masked":
        states = model.bert(batch["input_ids"]).last_hidden_state
        assert torch.equal(states, encoder(torch.tensor(ids)[batch["input_ids"]]).last_hidden_state)
        # the head begins as the identity up to a norm
        normal = torch.nn.functional.layer_norm(states, states.shape[-1:])
        assert torch.cosine_similarity(model.cls.predictions.transform(states), normal, dim=-1).min() > 0.99
    nothing = make_model(kind, encoder, ids, 32, random=True)
    assert not torch.equal(nothing.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(kind, small, corpus, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pretraining.train, "embedded_backbone", lambda name: small)
    sizes = dict(
        vocabulary=240, length=16, batch=4, micro_batch=2, steps=6, validation_blocks=4, warmup=1, mixture=None
    )
    config = (
        yaml.safe_load((HERE / f"{kind}.yaml").read_text()) | sizes | dict(evaluate=2, save=2, log=1, start="encoder")
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    common = [str(path), "--corpus", str(corpus), "--work", str(tmp_path / "work"), "--output"]
    main([*common, str(tmp_path / "whole")])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    curve = json.loads((tmp_path / "whole" / "curve.json").read_text())["curve"]
    assert [point["tokens"] for point in curve] == [0, 128, 256, 384]
    assert document["loss"] == curve[-1]["loss"] < curve[0]["loss"]
    assert set(document["held_out"]["perplexity"]) == {kind, "1-gram", "5-gram"}

    shutil.copytree(tmp_path / "whole" / "checkpoints" / "checkpoint-4", tmp_path / "part/checkpoints/checkpoint-4")
    shutil.copy(tmp_path / "whole" / "options.json", tmp_path / "part")
    main([*common, str(tmp_path / "part")])
    whole, part = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "part"))
    assert whole.keys() == part.keys() and all(torch.equal(whole[key], part[key]) for key in whole)
    assert {tensor.dtype for tensor in whole.values()} == {torch.bfloat16}
    saved = json.loads((tmp_path / "whole" / "model" / "config.json").read_text())
    assert saved["architectures"] == ["BertForMaskedLM" if kind == "masked" else "BertLMHeadModel"]
    assert (saved["eos_token_id"] is not None) == (kind == "causal") and (saved["use_cache"] or kind == "masked")
    assert json.loads((tmp_path / "part" / "curve.json").read_text())["curve"] == curve

    # ended before its schedule: the weights, the curve and the tokens of that step
    main([*common, str(tmp_path / "short"), "--set", "stop=4"])
    short = json.loads((tmp_path / "short" / "curve.json").read_text())
    assert short["tokens"] == 256 and short["curve"] == curve[:3]
    stopped = load_file(tmp_path / "short" / "model" / "model.safetensors")
    main(
        [*common, str(tmp_path / "short"), "--set", "stop=4", "--set", "log=2"]
    )  # called again, it stands where it stood
    again = load_file(tmp_path / "short" / "model" / "model.safetensors")
    assert all(torch.equal(stopped[key], again[key]) for key in stopped)
    assert json.loads((tmp_path / "short" / "curve.json").read_text()) == {**short, "log": 2}
    main([*common, str(tmp_path / "short")])  # the stop taken away, it goes on to the end of its schedule
    gone_on = load_file(tmp_path / "short" / "model" / "model.safetensors")
    assert all(torch.equal(whole[key], gone_on[key]) for key in whole)
    main([*common, str(tmp_path / "less"), "--set", "vocabulary=220"])  # the same folder of work, another vocabulary
    assert json.loads((tmp_path / "less" / "model" / "config.json").read_text())["vocab_size"] == 220


def test_a_causal_model_may_start_from_the_masked_one(tokenizer, ids, small):
    torch.manual_seed(1)
    masked = tf.BertForMaskedLM(tf.AutoConfig.from_pretrained(small)).eval()
    torch.nn.init.normal_(masked.cls.predictions.bias)
    model = make_model("causal", masked, ids, 32).eval()
    assert (
        model.config.is_decoder and model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    )
    # one token sees itself alone under either mask, and there the models agree
    one = torch.tensor([[7]])
    torch.testing.assert_close(model(one).logits, masked(torch.tensor([[ids[7]]])).logits[..., ids])


def by_hand(tokens, vocabulary, order, context, word):
    """Interpolated Kneser-Ney by dictionaries."""

    def grams(n):
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    def counts(n):
        return grams(n) if n == order else Counter(gram[1:] for gram in grams(n + 1))

    def probability(n, before):
        if n == 0:
            return 1 / vocabulary
        found, before = counts(n), tuple(before)[len(before) - n + 1 :]
        one, two = (sum(count == k for count in found.values()) for k in (1, 2))
        discount = one / (one + 2 * two) if one else 0.5
        following = {gram[-1]: count for gram, count in found.items() if gram[:-1] == before}
        lower = probability(n - 1, before[1:])
        if not following:
            return lower
        total = sum(following.values())
        return (max(following.get(word, 0) - discount, 0) + discount * len(following) * lower) / total

    return probability(order, context)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngrams_are_those_of_kneser_and_ney(order):
    draw = np.random.default_rng(order)
    tokens, vocabulary = draw.choice(6, 300, p=[0.4, 0.3, 0.15, 0.1, 0.04, 0.01]).astype(np.uint16), 8
    grams = NGrams(tokens, vocabulary, order)
    texts = [*(tokens[i : i + order] for i in range(5)), *draw.integers(0, vocabulary, (30, order))]
    for text in texts:
        got = np.exp(grams.log_probabilities(np.asarray(text, np.uint16))[-1])
        assert got == pytest.approx(by_hand(tokens.tolist(), vocabulary, order, text[:-1].tolist(), text[-1]), rel=1e-9)
    all_words = [np.exp(grams.log_probabilities(np.array([*texts[7][:-1], w]))[-1]) for w in range(vocabulary)]
    assert sum(all_words) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_model_is_judged_at_the_tokens_that_it_is_asked_for(kind, small, tokenizer, ids, tmp_path):
    """An untrained model with one output bias is a unigram: its perplexity is that of the counts of the tokens asked for."""
    less, encoder = cut(tokenizer, ids), tf.AutoModel.from_pretrained(small)
    model = make_model(kind, encoder, ids, 34, random=True)
    bias = torch.linspace(-2, 2, len(ids))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.zero_()
        model.cls.predictions.bias.copy_(bias)
    model.save_pretrained(tmp_path / "model")
    draw = np.random.default_rng(0)
    text = draw.integers(5, len(ids), 400).astype(np.uint16)
    config = {"kind": kind, "length": 34, "seed": 0, "vocabulary": len(ids)}
    collate, frame = Collate(kind, less, 0.2, 0), (less.cls_token_id, less.sep_token_id)
    found = judge(config, tmp_path, Tokens(text, {".": (0, 400)}, text), collate, frame)
    if kind == "causal":
        asked = np.arange(400 // 32 * 32)
    else:
        rows = [Blocks(text, 34, *frame, less.all_special_ids, 0)[i] for i in range(12)]
        labels = collate(rows)["labels"].numpy()
        asked = np.concatenate(
            [row["number"] * 32 + np.flatnonzero(label != IGNORED) - 1 for row, label in zip(rows, labels, strict=True)]
        )
    assert found["tokens"] == len(asked)
    logs = torch.log_softmax(bias, 0)[torch.tensor(text[asked].astype(int))]
    assert found["perplexity"][kind] == pytest.approx(torch.exp(-logs.mean()).item(), rel=1e-5)
    unigram = NGrams(text, len(ids), 1).log_probabilities(text)[asked]
    assert found["perplexity"]["1-gram"] == pytest.approx(np.exp(-unigram.mean()))


def test_a_model_is_judged_by_the_next_token_and_by_ngrams_of_the_training_text(small, tokenizer, ids, tmp_path):
    """By hand, token by token, with a model that reads its context, and other text to train on than to judge by."""
    less, encoder = cut(tokenizer, ids), tf.AutoModel.from_pretrained(small)
    torch.manual_seed(0)
    model = make_model("causal", encoder, ids, 18, random=True).eval()
    for parameter in model.parameters():
        parameter.data.mul_(5)
    model.save_pretrained(tmp_path / "model")
    draw = np.random.default_rng(1)
    known, text = (draw.integers(5, len(ids), size).astype(np.uint16) for size in (600, 64))
    config = {"kind": "causal", "length": 18, "seed": 0, "vocabulary": len(ids)}
    frame = (less.cls_token_id, less.sep_token_id)
    found = judge(config, tmp_path, Tokens(known, {".": (0, 600)}, text), Collate("causal", less, 0, 0), frame)[
        "perplexity"
    ]
    logs = []
    for start in range(0, 64, 16):
        row = torch.tensor([less.cls_token_id, *text[start : start + 16].tolist()])
        for t in range(1, 17):
            logs.append(model(input_ids=row[None, :t]).logits[0, -1].log_softmax(-1)[row[t]].item())
    assert found["causal"] == pytest.approx(np.exp(-np.mean(logs)), rel=1e-4)
    for order in (1, 5):
        expected = NGrams(known, len(ids), order).log_probabilities(text)
        assert found[f"{order}-gram"] == pytest.approx(np.exp(-expected.mean()))
    assert found["1-gram"] != pytest.approx(found["5-gram"], rel=1e-6)


def test_a_run_trains_on_the_mixture_and_is_evaluated_on_what_is_held_out(small, corpus, monkeypatch, tmp_path):
    monkeypatch.setattr(pretraining.train, "embedded_backbone", lambda name: small)
    made = []

    class Seen(Blocks):
        def __init__(self, *given):
            super().__init__(*given)
            made.append((self, given))

    monkeypatch.setattr(pretraining.train, "Blocks", Seen)
    sizes = dict(vocabulary=240, length=16, batch=4, micro_batch=2, steps=5, validation_blocks=4, warmup=1)
    config = yaml.safe_load((HERE / "masked.yaml").read_text()) | sizes | dict(mixture={".": 0.25, "more": 0.75})
    _, _, tokens = pretraining.train.prepare(config, corpus, tmp_path / "work")
    pretraining.train.train(config, corpus, tmp_path / "out", tmp_path / "work")
    (rows, _), (held, _) = made
    start = tokens.parts["more"][0]
    from_more = [number % rows.whole * rows.inner >= start for number in rows.order]
    assert len(rows) == 20 and sum(from_more) == 15
    assert from_more != sorted(from_more) and from_more != sorted(from_more, reverse=True), (
        "parts are shuffled together"
    )
    assert np.array_equal(rows.tokens, tokens.train) and np.array_equal(held.tokens, tokens.validation)


@pytest.fixture
def sized(small, corpus, monkeypatch, tmp_path):
    """Run the command with a configuration of two steps and `more` of its options; returns the output folder."""
    monkeypatch.setattr(pretraining.train, "embedded_backbone", lambda name: small)
    sizes = dict(
        vocabulary=240, length=16, batch=2, micro_batch=2, steps=2, validation_blocks=4, warmup=1, mixture=None
    )
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(read_options("masked") | sizes | dict(evaluate=1, save=1)))

    def run(*more, corpus=corpus, output=tmp_path / "out"):
        main([str(path), "--corpus", str(corpus), "--output", str(output), *more])
        return output

    return run


def refusal(capsys, call, *given, **named):
    """The one line that a command ends with, at exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        call(*given, **named)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("python -m pretraining: error: ")
    return said.removeprefix("python -m pretraining: error: ")


def test_a_run_goes_on_with_the_options_that_it_began_with_and_no_others(sized, corpus, capsys, tmp_path):
    output = sized("--set", "vocabulary=5000")
    written = {name: (output / name).read_bytes() for name in ("model/model.safetensors", "curve.json", "options.json")}
    document = json.loads(written["curve.json"])
    size = json.loads((output / "model" / "config.json").read_text())["vocab_size"]
    assert document["vocabulary"] == 5000 and document["vocabulary_kept"] == size < 5000

    asked = ["--set", "vocabulary=5000", "--set", "steps=6", "--set", "learning_rate=1.0"]
    assert refusal(capsys, sized, *asked) == (
        f"{output} holds a run with other options (learning_rate: 0.0004 then, 1.0 now, steps: 2 then, 6 now); use the same, or "
        "another --output. Only log, save, stop may change."
    )
    for option, told in (
        ("length=24", "length: 16 then, 24 now"),
        ("precision=float32", "precision: bfloat16 then, float32 now"),
    ):
        assert told in refusal(capsys, sized, "--set", "vocabulary=5000", "--set", option)
    less = tmp_path / "less"
    less.mkdir()
    shutil.copy(corpus / "a.txt", less)
    said = refusal(capsys, sized, "--set", "vocabulary=5000", corpus=less)
    assert "corpus: 2 files, " in said and " then, 1 files, " in said
    assert all((output / name).read_bytes() == content for name, content in written.items())

    sized("--set", "vocabulary=5000", "--set", "log=1", "--set", "save=2")
    assert (output / "model" / "model.safetensors").read_bytes() == written["model/model.safetensors"]
    assert (output / "curve.json").read_bytes() != written["curve.json"], "it says the options of this call"

    (output / "options.json").write_text("{")
    assert "use another --output" in refusal(capsys, sized)
    (output / "options.json").unlink()
    assert refusal(capsys, sized).startswith(f"{output / 'checkpoints'} holds a run without the options")


def test_a_checkpoint_that_was_cut_short_is_passed_over(sized):
    output = sized()
    checkpoints = output / "checkpoints"
    assert newest(checkpoints, None) == str(checkpoints / "checkpoint-2")
    assert newest(checkpoints, 2) == str(checkpoints / "checkpoint-1") and newest(checkpoints, 1) is None
    (checkpoints / "checkpoint-2" / "trainer_state.json").unlink()
    assert newest(checkpoints, None) == str(checkpoints / "checkpoint-1")


def test_what_the_model_or_the_corpus_cannot_give_is_one_message_and_begins_no_run(sized, corpus, capsys, tmp_path):
    flat, latin, few = tmp_path / "flat", tmp_path / "latin", tmp_path / "few"
    for folder, text in ((flat, b"One text.\n\nAnother."), (latin, "Ü".encode("latin-1")), (few, b"Text.")):
        folder.mkdir()
        (folder / "a.txt").write_bytes(text)
    (tmp_path / "empty").mkdir()
    for options, of, message in (
        ("length=4000", corpus, "length=4000: expected at most 512, the positions of the model to start from"),
        ("vocabulary=9", corpus, "vocabulary=9: expected at least "),
        ("steps=100000", corpus, "expected 200000 blocks of 16 tokens, the corpus has "),
        ("vocabulary=200", few, "expected 4 blocks of 16 tokens, the corpus has 0; "),  # no document is held out
        ("mixture={one: 1.0}", flat, f"mixture names one, but {flat} has no folders of its own; --set mixture=null"),
        ("mixture={foo: 1.0}", corpus, f"mixture names foo, expected folders of {corpus}: '.', 'more'; name those"),
        ("seed=1", latin, f"{latin / 'a.txt'}: expected UTF-8 ("),
        ("seed=1", tmp_path / "empty", f"{tmp_path / 'empty'}: expected text files (*.txt), found none"),
    ):
        assert refusal(capsys, sized, "--set", options, corpus=of).startswith(message), options
    assert not (tmp_path / "out" / "options.json").exists()
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refusal(capsys, sized, output=tmp_path / "file")
    sized()  # nothing of the above stands in its way


def test_a_corpus_of_which_nothing_is_held_out_is_read(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("Number 1\n")
    tokens = encoded(tmp_path, tokenizer, tmp_path / "cache")
    assert len(tokens.train) and not len(tokens.validation)
    check_mixture({".": 1.0}, tmp_path)
    check_mixture(None, tmp_path)


def test_the_configurations_that_ship_are_taken():
    for kind in ("masked", "causal"):
        assert read_options(kind) == yaml.safe_load((HERE / f"{kind}.yaml").read_text())
    changed = read_options("causal", ["steps=2000", "stop=1601", "mixture=null", "learning_rate=1"])
    assert (changed["steps"], changed["stop"], changed["mixture"], changed["learning_rate"]) == (2000, 1601, None, 1)
    check_options(changed | {"mixture": {".": 1}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["hidden"], "hidden: expected masked, causal or a YAML file"),
        (["masked", "--set", "rate=1"], "--set: rate is no option; expected kind, start"),
        (["masked", "--set", "steps"], "--set 'steps': expected key=value."),
        (["masked", "--set", "mixture={a"], "--set 'mixture={a': the value is not valid YAML ("),
        (["masked", "--set", "steps=abc"], "steps=abc: expected a whole number of at least 1."),
        (["masked", "--set", "steps="], "steps=null: expected a whole number of at least 1."),
        (["masked", "--set", "steps=0"], "steps=0: expected a whole number of at least 1."),
        (["masked", "--set", "log=true"], "log=true: expected a whole number of at least 1."),
        (["masked", "--set", "stop=0"], "stop=0: expected a whole number of at least 1, or null."),
        (["masked", "--set", "vocabulary=0"], "vocabulary=0: expected a whole number of at least 1."),
        (["masked", "--set", "length=2"], "length=2: expected a whole number of at least 4."),
        (["masked", "--set", "seed=-1"], "seed=-1: expected a whole number from 0 to 4294967295."),
        (["masked", "--set", "kind=foo"], "kind=foo: expected one of masked, causal."),
        (["masked", "--set", "mask_share=2"], "mask_share=2: expected a number from 0 to 1."),
        (["causal", "--set", "kind=masked"], "mask_share=0: expected a number above 0 where kind=masked"),
        (["masked", "--set", "learning_rate=fast"], "learning_rate=fast: expected a number above 0, as 4e-4."),
        (["masked", "--set", "weight_decay=.nan"], "weight_decay=.nan: expected a number of at least 0"),
        (["masked", "--set", "mixture=[a]"], "mixture=[a]: expected folders of the corpus, each with a share"),
        (["masked", "--set", "mixture={1: 1}"], "mixture={1: 1}: expected folders of the corpus, each with a share"),
        (["masked", "--set", "mixture={a: 2, b: -1}"], "mixture={a: 2, b: -1}: expected folders of the corpus"),
        (
            ["masked", "--set", "mixture={one: 0.5}"],
            "mixture={one: 0.5}: expected shares that sum to 1, these sum to 0.5.",
        ),
        (["causal", "--set", "start=t5"], "start=t5: expected one of encoder, masked, nothing"),
        (["masked", "--set", "precision=float16"], "precision=float16: expected one of bfloat16, float32."),
        (["masked", "--set", "batch=30"], "batch=30: expected a multiple of micro_batch=16"),
        (["masked", "--corpus", "nowhere"], "--corpus nowhere: expected a folder of text files"),
    ],
)
def test_a_mistake_is_one_message(given, message, tmp_path, capsys):
    said = refusal(capsys, main, ["--corpus", str(tmp_path), "--output", str(tmp_path / "out"), *given])
    assert said.startswith(message) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [", "not valid YAML ("),
        (b"\xff\xfe\xff", "cannot be read as UTF-8 text ("),
        (b"kind: masked\nkind: causal", "ambiguous: the key 'kind' stands in line 1 and again in line 2; keep one"),
        (b"kind", "expected flat 'key: value' lines, got str."),
        (b"kind: masked\nspeed: 3", "speed is no option; expected kind, start, "),
    ],
)
def test_a_configuration_that_is_none_is_one_message(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(SoftPromptError) as refused:
        read_options(str(path))
    assert str(refused.value).startswith(f"{path}: {message}")


def test_a_configuration_without_an_option_says_which(tmp_path):
    path, whole = tmp_path / "mine.yaml", read_options("masked")
    path.write_text(yaml.safe_dump({name: value for name, value in whole.items() if name != "batch"}))
    with pytest.raises(
        SoftPromptError, match=r"lacks batch; add it there, or with --set batch=VALUE \(see .*masked\.yaml"
    ):
        read_options(str(path))
    assert read_options(str(path), ["batch=32"]) == whole
