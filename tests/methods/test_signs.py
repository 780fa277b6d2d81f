"""Numbers below zero, and shares that nothing reads."""

import pytest

import softprompt
from softprompt import SoftPromptError, contrast, infoprompt, tsloss
from softprompt.methods.table import find_method


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (tsloss, {"share": -0.5}),
        (tsloss, {"alpha": -10.0}),
        (tsloss, {"l1": -1.0}),
        (contrast, {"weight": -1.0}),
        (infoprompt, {"share": -1}),
        (infoprompt, {"gamma": -0.1}),
        (infoprompt, {"kl": -0.1}),
    ],
)
def test_a_term_is_not_driven_the_other_way(method, given):
    ((name, value),) = given.items()
    with pytest.raises(SoftPromptError, match=f"^{name}: expected a number of at least 0, got {value}"):
        method(**given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"exact": True}, "exact=True takes weights"), ({"gamma": 0.1, "beta": 0.2}, "gamma and beta are given")],
)
def test_a_share_that_no_term_takes_is_refused(given, reason):
    with pytest.raises(SoftPromptError, match=f"share=0.2 makes no difference: {reason}; drop share"):
        infoprompt(share=0.2, **given)
    assert infoprompt(share=0.2, gamma=0.1).objectives[1]["share"] == 0.2
    infoprompt(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.5, "exact": True}, "temperature=0.5 makes no difference: exact=True takes products"),
        ({"bottleneck": 7}, "bottleneck=7 makes no difference: generator='free' has none"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(given, message):
    with pytest.raises(SoftPromptError, match=message):
        infoprompt(**given)
    infoprompt(temperature=0.5, generator="instance", bottleneck=7)


def test_infoprompt_exact_has_the_papers_weights_and_its_gradient() -> None:
    entries = softprompt.infoprompt(exact=True).objectives
    assert [entry.get("weight") for entry in entries] == [0.1, 0.2, 0.1] and entries[2]["through_state"]


def test_lora_takes_its_alpha() -> None:
    assert find_method("peft:lora").build(r=4, lora_alpha=32).lora_alpha == 32
