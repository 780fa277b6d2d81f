"""Help, version, the list of methods and a typo need no heavy import; PEFT knows SOFTPROMPT in any order of imports."""

import os
import subprocess
import sys

import pytest

import softprompt
from softprompt.catalog import CATALOG
from softprompt.methods import METHODS

HEAVY = ("torch", "transformers", "peft", "datasets", "sklearn", "scipy", "pandas", "numpy", "accelerate", "pyarrow")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["methods"],
        ["methods", "--json"],
        ["train", "--help"],
        ["bench", "--help"],
        ["trian"],
        ["train", "--metod", "ept"],
        ["train", "--method", "epx"],
    ],
    ids=" ".join,
)
def test_what_needs_no_model_imports_none(words: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["softprompt", *{words!r}]
from softprompt.cli import main
try:
    main()
except SystemExit:
    pass
print("LOADED", sorted(set(sys.modules) & set({HEAVY!r})))
"""
    assert python(code).splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize(
    "imports",
    [
        "import peft; import softprompt",
        *(
            pytest.param(order, marks=pytest.mark.slow)
            for order in (
                "import softprompt; import peft",  # what each command does in test_kills.py and test_server.py
                "import softprompt; from transformers.utils import is_peft_available; is_peft_available(); from peft import PeftModel",
                "from peft import PeftModel; import softprompt._types",
                "import softprompt.tuner",
            )
        ),
    ],
)
def test_peft_knows_the_type_in_any_order_of_imports(imports: str) -> None:
    code = f"{imports}\nfrom peft import PeftType\nfrom peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known\n"
    assert python(code + "print(PeftType('SOFTPROMPT') in known)").strip() == "True"


def test_every_name_of_the_face_is_there() -> None:
    for name in softprompt.__all__:
        assert getattr(softprompt, name) is not None
    assert {"train", "ept", "SoftPromptConfig", "look", "prompts_of"} <= set(dir(softprompt))
    with pytest.raises(AttributeError, match="tran"):
        _ = softprompt.tran


def test_the_catalogue_says_what_the_builders_say() -> None:
    import inspect

    assert list(CATALOG) == list(METHODS)
    for name, entry in CATALOG.items():
        build = METHODS[name].build
        signature = inspect.signature(build).parameters.values()
        assert entry.parameters == {p.name: p.default for p in signature if p.kind is not inspect.Parameter.VAR_KEYWORD}
        assert entry.documentation == inspect.getdoc(build)


def test_the_shell_completes_commands_and_methods() -> None:
    def completed(words: str, at: int) -> list[str]:
        told = {"COMP_WORDS": words, "COMP_CWORD": str(at), "_SOFTPROMPT_COMPLETE": "complete_bash"}
        code = "import sys; sys.argv = ['softprompt']; from softprompt.cli import main; main()"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **told})
        return run.stdout.split()

    assert completed("softprompt train --method peft:l", 3) == ["peft:lora"]
    assert completed("softprompt opt", 1) == ["options"]
