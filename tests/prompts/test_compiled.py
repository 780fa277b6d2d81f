"""A compiled prompt: keys and values, and the delta of what it was made from."""

from softprompt.prompts import CompiledPrompt


def test_a_compiled_prompt_has_its_delta_in_a_group_of_its_own() -> None:
    groups = CompiledPrompt(2, 3, 8, 2, 4, 5).parameter_groups()
    assert {name: [tuple(p.shape) for p in group] for name, group in groups.items()} == {
        "prompt": [(2, 2, 3, 4)] * 2,
        "low_rank": [(5, 8)],
    }
