"""Where a data set is looked for."""

import datasets
import pytest

from house.refusals import said
from softprompt import SoftPromptError
from softprompt.data import load_task


def test_neither_a_path_nor_reachable(tmp_path, monkeypatch):
    (tmp_path / "reviews").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SoftPromptError) as error:
        load_task("review")
    assert said(error).startswith(
        "data source 'review': expected an existing path or a reachable hub dataset, got no such path here, and from the hub: "
    )
    assert said(error).endswith(" Did you mean 'reviews'?")
    with pytest.raises(SoftPromptError, match=r"Did you mean 'messages'\?"):
        load_task("mesages")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("a path is no hub name"))
    for path in ("./review", f"{tmp_path}/review", "reviews/train", "review.csv"):
        with pytest.raises(SoftPromptError, match="got a path that does not exist"):
            load_task(path)


def test_a_hub_dataset(monkeypatch, announced):
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )

    def part(n, labels):
        return datasets.Dataset.from_dict({"sentence": [f"s{i}" for i in range(n)], "label": labels}, features=features)

    hub = datasets.DatasetDict(
        train=part(40, [0, 1] * 20), validation=part(4, [0, 1] * 2), test=part(4, [-1] * 4), extra=part(6, [0, 1] * 3)
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: hub)
    task = load_task("owner/sst", text_column="sentence", hub_config="x")
    assert (task.name, task.label_names, task.origin["path"]) == ("sst", ["neg", "pos"], None)
    assert task.origin["files"] == {
        "train": "owner/sst[train]",
        "dev": "owner/sst[train]",
        "test": "owner/sst[validation]",
    }
    assert announced()[0] == "source = hub dataset owner/sst: no path has that name"
    assert load_task("owner/sst", text_column="sentence", test_file="extra").origin["rows"]["test"] == 6
    with pytest.raises(
        SoftPromptError, match=r"unknown test_file \(split of hub dataset owner/sst\) 'extr': expected one of train"
    ):
        load_task("owner/sst", text_column="sentence", test_file="extr")
