"""Which trial is kept: by its dev score, then by its dev loss, then the first."""

from softprompt.experiments.choice import DevScore


def test_direction_ties_and_order() -> None:
    assert DevScore(0.5).beats(None) and DevScore(0.6).beats(DevScore(0.5)) and not DevScore(0.5).beats(DevScore(0.6))
    assert DevScore(0.4).beats(DevScore(0.5), greater_is_better=False)
    assert not DevScore(0.6).beats(DevScore(0.5), greater_is_better=False)
    assert DevScore(0.5, 0.1).beats(DevScore(0.5, 0.2)) and not DevScore(0.5, 0.2).beats(DevScore(0.5, 0.1))
    assert not DevScore(0.5, 0.1).beats(DevScore(0.5, 0.1)) and not DevScore(0.5).beats(DevScore(0.5, 0.1))
    assert DevScore(0.5, 0.1).beats(DevScore(0.5, 0.2), greater_is_better=False)  # a loss is lower wherever scores go
