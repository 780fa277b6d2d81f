"""What a sentence encoder says of itself, in a folder and behind a hub name."""

import json
import shutil

import pytest
import transformers as tf
from huggingface_hub import constants

import softprompt
from house.runs import options
from house.tiny import write_classification
from softprompt import SoftPromptError
from softprompt.models import TaskCard
from softprompt.models.classifier import choose_pairs, choose_pooling
from softprompt.models.sentence_encoder import declared_pooling
from softprompt.training import train

MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def write_pooling(folder, facts, modules=MODULES, path="1_Pooling"):
    (folder / path).mkdir(parents=True, exist_ok=True)
    (folder / path / "config.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch, encoder):
    """A function that puts a backbone into the hub's cache, as a download would; returns its folder there."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name):
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("a" * 40)
        return shutil.copytree(encoder, place / "snapshots" / ("a" * 40))

    return put


@pytest.mark.parametrize(
    ("facts", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ["cls"]),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, ["mean"]),
        ({"pooling_mode_lasttoken": True}, ["lasttoken"]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ["mean", "max"]),
        ({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}, ["cls"]),
        ({"embedding_dimension": 32, "pooling_mode": ["mean", "max"]}, ["mean", "max"]),
        ({"word_embedding_dimension": 32}, ["mean"]),
    ],
)
def test_both_forms_of_the_file_are_read(tmp_path, facts, modes):
    assert declared_pooling(write_pooling(tmp_path, facts)) == modes


def test_what_sentence_transformers_writes_is_what_is_read(tmp_path):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Pooling

    for mode, ours in (("mean", "mean"), ("cls", "cls"), ("lasttoken", "last")):
        (tmp_path / mode / "1_Pooling").mkdir(parents=True)
        Pooling(32, mode).save(str(tmp_path / mode / "1_Pooling"))
        (tmp_path / mode / "modules.json").write_text(json.dumps(MODULES))
        bert = tf.BertModel(tf.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
        pooling, reason = choose_pooling(tmp_path / mode, bert)
        assert (pooling, reason) == (ours, f"this sentence encoder says {mode!r}")


def test_the_part_that_pools_is_the_one_that_modules_name(tmp_path):
    named = [MODULES[0], {**MODULES[1], "path": "2_Other"}]
    write_pooling(tmp_path, {"pooling_mode": "mean"}, named)
    write_pooling(tmp_path, {"pooling_mode": "cls"}, None, "2_Other")
    assert declared_pooling(tmp_path) == ["cls"]
    (tmp_path / "modules.json").write_text(json.dumps(MODULES[:1]))
    assert declared_pooling(tmp_path) is None and choose_pairs(tmp_path)[0] == "joined"


def test_a_pooling_that_we_lack_is_named(encoder, tmp_path):
    model = tf.AutoModel.from_pretrained(encoder)
    pooling, reason = choose_pooling(write_pooling(tmp_path, {"pooling_mode": ["mean", "max"]}), model)
    assert pooling == "mean"
    assert reason.startswith(
        "this sentence encoder says 'mean' and 'max', which is none of mean, cls, last; an encoder's"
    )


@pytest.mark.parametrize(
    ("facts", "modules", "message"),
    [
        ("{", MODULES, "expected JSON, as sentence-transformers writes it"),
        ([1], MODULES, "expected a mapping, as sentence-transformers writes it, got [1]."),
        (
            {},
            {"path": ""},
            "expected a list of mappings with a path, as sentence-transformers writes it, got {'path': ''}.",
        ),
    ],
)
def test_a_file_of_another_form_is_one_clear_message(tmp_path, facts, modules, message):
    with pytest.raises(SoftPromptError) as error:
        declared_pooling(write_pooling(tmp_path, facts, modules))
    assert message in str(error.value)


def test_a_hub_name_is_asked_as_a_folder_is(hub, tmp_path, announced):
    write_pooling(hub("org/sentences"), {"pooling_mode_cls_token": True})
    run = options("org/sentences", write_classification(tmp_path / "data", pair=True), tmp_path / "run")
    folder = train(run, progress=False).folder
    card = TaskCard.read(folder)
    assert (card.backbone, card.pooling, card.pairs) == ("org/sentences", "cls", "apart")
    assert "pooling=cls: this sentence encoder says 'cls'" in announced()
    assert softprompt.Predictor(folder).predict([{"text": "red dog", "text_pair": "It was good"}])


def test_who_loads_the_backbone_gets_the_same_pooling(hub):
    write_pooling(hub("org/sentences"), {"pooling_mode": "cls"})
    assert softprompt.classifier_for(tf.AutoModel.from_pretrained("org/sentences"), ["a", "b"]).pooling == "cls"


def test_what_nobody_could_look_up_is_said(hub, encoder, announced):
    missing = hub("org/unknown")
    assert declared_pooling("org/unknown") is None
    assert "org/unknown is taken for no sentence encoder: 1_Pooling/config.json is not in the cache" in announced()[-1]
    count = len(announced())
    # the hub's client notes what the hub said it does not have
    noted = missing.parent.parent / ".no_exist" / missing.name
    for file in ("modules.json", "1_Pooling/config.json"):
        (noted / file).parent.mkdir(parents=True, exist_ok=True)
        (noted / file).touch()
    assert declared_pooling("org/unknown") is None and declared_pooling(encoder) is None
    assert declared_pooling("") is None and declared_pooling(encoder / "gone") is None
    assert len(announced()) == count
