"""Tiny backbones on disk, with a tokenizer, and a toy task that they can learn."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [
    "red",
    "green",
    "blue",
    "dog",
    "cat",
    "bird",
    "sun",
    "rain",
    "snow",
    "runs",
    "sits",
    "eats",
    "now",
    "then",
    "here",
    "there",
    "good",
    "bad",
    "warm",
    "cold",
]


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


SIZES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64
)


def tokenizer(pairs: bool = True) -> tf.PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, ".", "?", "was", "It"])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if pairs:
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]",
    )


def save_backbone(folder: Path, kind: str = "encoder") -> Path:
    """Write a random BERT ("encoder"), Llama ("decoder") or T5 ("encoder_decoder") with its tokenizer."""
    torch.manual_seed(0)
    vocabulary = dict(vocab_size=40, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    if kind == "encoder":
        model = tf.BertForMaskedLM(tf.BertConfig(**SIZES, **vocabulary, initializer_range=0.2))
    elif kind == "decoder":
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, **vocabulary, initializer_range=0.2))
    else:
        sizes = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
        model = tf.T5ForConditionalGeneration(tf.T5Config(**sizes, **vocabulary))
    model.save_pretrained(folder)
    tokenizer(pairs=kind == "encoder").save_pretrained(folder)
    return folder


def write_classification(folder: Path, rows: int = 60, pair: bool = False) -> Path:
    """Class = which of three animals the text names; train, validation and test files."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", rows), ("validation", 18), ("test", 24)):
        made = []
        for i in range(count):
            label = ("dog", "cat", "bird")[i % 3]
            words = [rng.choice(WORDS[:3]), label, *(rng.choice(WORDS[6:]) for _ in range(rng.randrange(1, 9)))]
            made.append({"text": " ".join(words), **({"text_pair": "It was good"} if pair else {}), "label": label})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder


def write_tasks(file: Path, rows: int = 90) -> Path:
    """Two tasks over texts of one sort in one file: which of three animals, and which of two skies; the second has fewer rows."""
    rng, made = random.Random(0), []
    for i in range(rows):
        animal, sky = ("dog", "cat", "bird")[i % 3], ("sun", "rain")[i % 2]
        text = " ".join(
            [rng.choice(WORDS[:3]), animal, sky, *(rng.choice(WORDS[9:]) for _ in range(rng.randrange(1, 5)))]
        )
        made += [{"task": "animal", "text": text, "label": animal}]
        made += [{"task": "sky", "text": text, "label": sky}] * (i % 3 > 0)
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


def write_completion(folder: Path) -> Path:
    """Completion = the animal that the prompt names."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 24), ("validation", 8), ("test", 8)):
        made = []
        for i in range(count):
            animal = ("dog", "cat")[i % 2]
            made.append(
                {
                    "prompt": " ".join(
                        [rng.choice(WORDS[:3]), animal, *(rng.choice(WORDS[6:]) for _ in range(rng.randrange(0, 5)))]
                    ),
                    "completion": animal,
                }
            )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder


def write_tokens(folder: Path, rows: int = 60) -> Path:
    """Tags: a colour and the animal behind it are a PET, an animal alone is one, too, and the weather is a SKY."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", rows), ("validation", 18), ("test", 24)):
        made = []
        for i in range(count):
            animal, weather = ("dog", "cat", "bird")[i % 3], ("sun", "rain", "snow")[i % 3]
            pet = [(rng.choice(WORDS[:3]), "B-PET"), (animal, "I-PET")] if i % 2 else [(animal, "B-PET")]
            plain = [[(rng.choice(WORDS[9:]), "O") for _ in range(rng.randrange(1, 4))] for _ in range(2)]
            pairs = [*plain[0], *pet, *plain[1], *([(weather, "B-SKY")] if i % 4 else [])]
            made.append({"tokens": [word for word, _ in pairs], "tags": [tag for _, tag in pairs]})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder


def write_several(folder: Path, rows: int = 60) -> Path:
    """Classes = which of cat, dog and sun the text names; some texts name none."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", rows), ("validation", 18), ("test", 24)):
        made = []
        for i in range(count):
            labels = [name for bit, name in enumerate(("cat", "dog", "sun")) if i >> bit & 1]
            words = [*labels, *(rng.choice(WORDS[9:]) for _ in range(rng.randrange(1, 5)))]
            rng.shuffle(words)
            made.append({"text": " ".join(words), "label": labels})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder


def write_numbers(folder: Path, rows: int = 60, pair: bool = False) -> Path:
    """The number is 2.5 and 1 for each "good" in the text, and -1 for each "bad"."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", rows), ("validation", 18), ("test", 24)):
        made = []
        for _ in range(count):
            moods = [rng.choice(("good", "bad")) for _ in range(rng.randrange(3))]
            words = [*moods, *(rng.choice(WORDS[:12]) for _ in range(2))]
            rng.shuffle(words)
            value = 2.5 + moods.count("good") - moods.count("bad")
            made.append({"text": " ".join(words), **({"text_pair": "It was good"} if pair else {}), "label": value})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder


# turns as "user: ... [SEP]" and "assistant: ... [SEP]", after one [CLS]
CHAT = (
    "[CLS]{% for m in messages %} {{ 'It' if m['role'] == 'user' else 'was' if m['role'] == 'assistant' else 'here' }} "
    "{{ m['content'] }} [SEP]{% endfor %}{% if add_generation_prompt %} was{% endif %}"
)


def save_talker(folder: Path) -> Path:
    """A decoder whose tokenizer has a chat template."""
    save_backbone(folder, "decoder")
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def write_chat(folder: Path, rows: int = 24) -> Path:
    """Answer = the animal that the question names; some conversations have two turns."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", rows), ("validation", 8), ("test", 8)):
        made = []
        for i in range(count):
            messages = [{"role": "system", "content": "now"}] if i % 3 == 0 else []
            for turn in range(1 + i % 2):
                animal = ("dog", "cat")[(i // 2 + turn) % 2]
                asked = " ".join([rng.choice(WORDS[:3]), animal, rng.choice(WORDS[9:])])
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": animal}]
            made.append({"messages": messages})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder
