"""Rows of two texts: read as one input, or apart and compared."""

import json
import random

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel

import softprompt
from house.runs import options
from house.tiny import WORDS, save_backbone, tokenizer, write_classification
from softprompt import SoftPromptError, objective
from softprompt.data import by_length, collator, encode_classification
from softprompt.methods import METHODS
from softprompt.models.classifier import choose_pairs
from softprompt.training.keys.options import RunOptions
from softprompt.training.prepare import pairs_for, prepare
from softprompt.tuner import compare_texts, find_state

SMALL = {
    "ept": {"num_virtual_tokens": 3, "rank": 2, "max_positions": 24},
    "dept": {"num_virtual_tokens": 3, "rank": 2, "max_positions": 24},
    "spt": {"layers": [0, 1], "bottleneck": 4},
    "peft:lora": {"r": 2},
    "peft:ia3": {},
}


def write_pairs(folder, rows=40):
    """Class = whether the second text has the words of the first, in another order."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)

    def text(animal):
        return " ".join([rng.choice(WORDS[:3]), animal, *(rng.choice(WORDS[6:]) for _ in range(rng.randrange(1, 7)))])

    for split, count in (("train", rows), ("validation", 16), ("test", 20)):
        made = []
        for i in range(count):
            first, other = (text(animal) for animal in rng.sample(("dog", "cat", "bird"), 2))
            second = " ".join(reversed(first.split())) if i % 2 else other
            made.append({"text": first, "text_pair": second, "label": ("other", "same")[i % 2]})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """An encoder that says that it embeds sentences."""
    folder = save_backbone(tmp_path_factory.mktemp("sentences"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def rows_of(animals, count=6, **more):
    rows = softprompt.load_task(animals).train.select(range(count))
    return rows, encode_classification(tokenizer(), rows, 24, **more)


def classifier(encoder, pairs="apart", pooling="mean"):
    torch.manual_seed(1)
    return softprompt.classifier_for(AutoModel.from_pretrained(encoder), ["other", "same"], pooling, pairs=pairs).eval()


# ---------------------------------------------------------------- from rows to batches


def test_what_two_states_share_by_hand():
    states = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0], [0.0, -0.5]])  # two rows of two texts
    expected = torch.tensor([[0.6, -0.2, 0.6, 0.2], [-1.0, 1.0, 1.0, 1.0]]) * 2**0.5
    torch.testing.assert_close(compare_texts(states), expected)
    torch.testing.assert_close(compare_texts(states * 7), expected)  # directions alone count


def test_texts_apart_are_inputs_of_their_own(announced):
    rows = Dataset.from_dict({"text": ["red dog", "cat"], "text_pair": ["bird", "sun rain snow now"], "label": [1, 0]})
    apart = encode_classification(tokenizer(), rows, 5, pairs="apart")
    alone = [
        encode_classification(tokenizer(), Dataset.from_dict({"text": rows[name], "label": [1, 0]}), 5)
        for name in ("text", "text_pair")
    ]
    assert apart["input_ids"] == alone[0]["input_ids"] and apart["labels"] == [1, 0]
    assert apart["second_input_ids"] == alone[1]["input_ids"] and len(apart["second_input_ids"][1]) == 5
    assert any(line.startswith("cut 1 of 4 inputs: they are longer than max_length=5") for line in announced())
    joined = encode_classification(tokenizer(), rows, 24)
    assert not any(name.startswith("second") for name in joined.column_names) and len(joined["input_ids"][0]) == 6
    with pytest.raises(
        SoftPromptError, match="expected a dataset with columns text, text_pair, label, got text, label"
    ):
        encode_classification(tokenizer(), rows.remove_columns("text_pair"), 24, pairs="apart")


def test_a_batch_holds_first_and_second_texts_in_turn(animals):
    _, rows = rows_of(animals, pairs="apart")
    batch = collator(tokenizer(), "classification")(rows.to_list())
    assert batch["input_ids"].shape[0] == 12 and batch["input_ids"].shape[1] % 8 == 0
    for i, row in enumerate(rows):
        for place, name in ((2 * i, "input_ids"), (2 * i + 1, "second_input_ids")):
            real = batch["attention_mask"][place].bool()
            assert batch["input_ids"][place][real].tolist() == row[name]
    assert batch["labels"].tolist() == rows["labels"]
    unlabelled = collator(tokenizer(), "classification")(rows.remove_columns("labels").to_list())
    assert set(unlabelled) == set(batch) - {"labels"}


def test_rows_are_sorted_by_their_longer_text(animals):
    _, rows = rows_of(animals, 20, pairs="apart")
    longer = [max(len(row["input_ids"]), len(row["second_input_ids"])) for row in by_length(rows)]
    assert longer == sorted(longer) and longer[0] < longer[-1]


# ---------------------------------------------------------------- the classifier


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_logits_compare_the_states_of_two_separate_passes(encoder, animals, pooling):
    model, (rows, encoded) = classifier(encoder, pooling=pooling), rows_of(animals, pairs="apart")
    batch = collator(tokenizer(), "classification")(encoded.to_list())
    with torch.no_grad():
        got = model(**batch)
        for i, row in enumerate(rows):
            states = []
            for name in ("text", "text_pair"):
                ids = torch.tensor([tokenizer()(row[name])["input_ids"]])
                hidden = model.backbone(input_ids=ids).last_hidden_state[0]
                state = hidden.mean(0) if pooling == "mean" else hidden[0]
                states.append(state / state.norm() * 32**0.5)
            u, v = states
            expected = model.classifier(torch.cat([u - v, (u - v).abs()]))
            torch.testing.assert_close(got.logits[i], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.loss, torch.nn.functional.cross_entropy(got.logits, batch["labels"]))


def test_a_batch_that_is_not_in_pairs_is_refused(encoder):
    model, ids = classifier(encoder), torch.randint(5, 30, (3, 6))
    with pytest.raises(
        SoftPromptError, match=r"pairs='apart' reads first and second texts in turn: expected two rows per"
    ):
        model(input_ids=ids)
    with pytest.raises(
        SoftPromptError, match=r"two rows per label, got 2 rows for 2 labels; encode with pairs='apart'"
    ):
        model(input_ids=ids[:2], labels=torch.tensor([0, 1]))
    with pytest.raises(SoftPromptError, match="unknown pairs 'both': expected one of joined, apart"):
        softprompt.PooledClassifier(model.backbone, ["a", "b"], "mean", "both")


@pytest.mark.parametrize("method", METHODS)
def test_every_prompt_stands_before_each_of_the_two_texts(method, encoder, animals):
    """The state of a text beside another is the one that it has alone, behind the same prompt."""
    own = SMALL.get(method, {"num_virtual_tokens": 3})
    torch.manual_seed(0)
    model = get_peft_model(classifier(encoder), METHODS[method].build(task_type="SEQ_CLS", **own)).eval()
    for name, value in model.named_parameters():
        if value.requires_grad and "classifier" not in name:
            torch.nn.init.normal_(value, std=0.3)
    _, encoded = rows_of(animals, pairs="apart")
    batch = collator(tokenizer(), "classification")(encoded.to_list())
    with torch.no_grad():
        together = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        for i, row in enumerate(encoded):
            pair = [{"input_ids": row[f"{prefix}input_ids"]} for prefix in ("", "second_")]
            one = tokenizer().pad(pair, return_tensors="pt")
            torch.testing.assert_close(model(**one).logits[0], together[i], atol=1e-4, rtol=1e-4)
        bare = classifier(encoder)(**batch).logits  # with the same head
    assert (bare - together).abs().max() > 1e-3  # the prompt does something


def test_the_contrast_is_between_rows_and_not_between_texts(encoder, animals):
    torch.manual_seed(0)
    model = get_peft_model(
        classifier(encoder), softprompt.contrast(task_type="SEQ_CLS", num_virtual_tokens=2, temperature=0.5)
    ).train()
    _, encoded = rows_of(animals, pairs="apart")
    seen = {}
    head = model.get_base_model().classifier.modules_to_save["default"]
    head.register_forward_pre_hook(lambda module, args: seen.update(z=args[0]))
    batch = collator(tokenizer(), "classification")(encoded.to_list())
    term = model(**batch).objectives["contrastive"]
    z, labels = torch.nn.functional.normalize(seen["z"], dim=-1), batch["labels"]
    scores = (z @ z.T / 0.5).fill_diagonal_(-torch.inf).log_softmax(1)
    same = (labels[:, None] == labels).fill_diagonal_(False)
    expected = torch.stack([-scores[i][same[i]].mean() for i in range(len(z)) if same[i].any()]).mean()
    assert z.shape == (6, 64)
    torch.testing.assert_close(term, expected, atol=1e-5, rtol=1e-5)


def test_objectives_about_one_text_are_refused(encoder, animals):
    model = get_peft_model(classifier(encoder), softprompt.infoprompt(task_type="SEQ_CLS", num_virtual_tokens=2))
    _, encoded = rows_of(animals, pairs="apart")
    with pytest.raises(SoftPromptError, match="objectives read head_rows, unprompted, states of one text, but this"):
        model.train()(**collator(tokenizer(), "classification")(encoded.to_list()))


# ---------------------------------------------------------------- the choice


def test_a_sentence_encoder_compares_and_any_other_encoder_reads_both(encoder, sentences, animals, tmp_path, announced):
    assert choose_pairs(sentences)[0] == "apart" and choose_pairs(encoder)[0] == "joined"
    apart = prepare(options(sentences, animals, tmp_path / "a"))
    assert apart.card.pairs == "apart" == apart.model.pairs
    assert apart.model.classifier.in_features == 2 * apart.model.config.hidden_size
    assert "pairs=apart: this sentence encoder was trained to compare two states" in "\n".join(announced())
    joined = prepare(options(encoder, animals, tmp_path / "b"))
    assert joined.card.pairs == "joined" == joined.model.pairs
    asked = prepare(options(sentences, animals, tmp_path / "c", pairs="joined"))
    assert asked.card.pairs == "joined" and "second_input_ids" not in asked.encoded["train"].column_names
    single = prepare(options(sentences, write_classification(tmp_path / "single"), tmp_path / "d", pairs="apart"))
    assert single.card.pairs is None and single.model.pairs == "joined"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"method": "infoprompt"}, "the objective 'head_information' compares a state with that of the same input"),
        (
            {"objectives": [objective("representation_information")]},
            "the objective 'representation_information' compares",
        ),
        ({"track": "mi"}, "track='mi' compares a state with that of the same input without prompt"),
        (
            {"method": "deep_prompts", "layers": [1], "cache_below": "memory"},
            "cache_below='memory' keeps the states of one",
        ),
        ({"head": "stock"}, "head='stock' reads one"),
    ],
)
def test_where_something_reads_single_inputs_texts_are_joined(more, why, sentences, animals, tmp_path, announced):
    task = softprompt.load_task(animals)
    chosen = options(sentences, animals, tmp_path / "a", **more)
    assert pairs_for(chosen, task, chosen.head) == "joined"
    if chosen.head == "pooled":
        assert f"pairs=joined: {why}" in "\n".join(announced())
    asked = options(sentences, animals, tmp_path / "b", pairs="apart", **more)
    with pytest.raises(SoftPromptError, match="pairs='apart' compares the states of two inputs, but") as caught:
        pairs_for(asked, task, asked.head)
    assert why in str(caught.value) and "use pairs='joined'" in str(caught.value)


def test_an_unknown_pairing_is_refused(sentences, animals, tmp_path):
    with pytest.raises(SoftPromptError, match="unknown pairs 'both': expected one of auto, joined, apart"):
        options(sentences, animals, tmp_path, pairs="both")


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("method", ["contrast", "prompt_tuning", "spt", "peft:prompt_tuning", "peft:prefix_tuning"])
def test_a_run_on_pairs_trains_saves_and_predicts(method, sentences, animals, tmp_path):
    chosen = options(sentences, animals, tmp_path / "out", method=method)
    if method == "spt":
        chosen = RunOptions.from_flat({**chosen.to_flat(), "budget": 1, "bottleneck": 4})
    result = softprompt.train(chosen, progress=False)
    info, card = result.document["train_info"], json.loads((tmp_path / "out" / "task.json").read_text())
    assert card["pairs"] == "apart" == result.document["meta_info"]["model_info"]["pairs"]
    assert '"text_pair"' in (tmp_path / "out" / "README.md").read_text()
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert [tuple(v.shape) for k, v in weights.items() if k.endswith("classifier.weight")] == [(2, 64)]
    predictor, test = softprompt.Predictor(tmp_path / "out", batch_size=5), softprompt.load_task(animals).test
    assert predictor.evaluate(test)["accuracy"] == pytest.approx(info["test accuracy"])
    found = predictor.predict(test.to_list()[:3])
    assert all(sum(row["scores"].values()) == pytest.approx(1.0) for row in found)
    with pytest.raises(SoftPromptError, match="row 2: expected a non-empty 'text_pair', got None; columns are"):
        predictor.predict([test[0], {"text": "red dog"}])
    with pytest.raises(
        SoftPromptError, match="the adapter compares two texts: expected a column 'text_pair', got none"
    ):
        predictor.evaluate(test.remove_columns("text_pair"))


def test_two_states_tell_likeness_better_than_one_of_both_texts(animals, tmp_path):
    """On the embedded encoder, whose embeddings were trained to be compared."""
    probes = {
        pairs: prepare(
            RunOptions.from_flat(
                {
                    "data": str(animals),
                    "output_dir": str(tmp_path),
                    "dtype": "float32",
                    "pairs": pairs,
                    "max_length": 24,
                }
            )
        ).probe
        for pairs in ("auto", "apart", "joined")
    }
    assert probes["auto"] == probes["apart"]
    assert probes["apart"]["test"]["accuracy"] >= 0.95 > probes["joined"]["test"]["accuracy"]


def test_rows_reach_a_stock_trainer_only_with_their_second_text(sentences, animals, tmp_path):
    import transformers as tf

    _, encoded = rows_of(animals, pairs="apart")
    model = get_peft_model(classifier(sentences), softprompt.prompt_tuning(task_type="SEQ_CLS", num_virtual_tokens=2))

    def trainer(**more):
        arguments = tf.TrainingArguments(
            str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, **more
        )
        return tf.Trainer(model, arguments, collator(tokenizer(), "classification"), encoded)

    trainer(remove_unused_columns=False).train()
    assert find_state(model) is not None
    with pytest.raises(SoftPromptError, match="remove_unused_columns=False in a stock Trainer"):
        trainer().train()
