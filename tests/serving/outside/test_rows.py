"""The scripts of the package are copied as they are."""

from pathlib import Path

import pytest
import transformers as tf
from peft import get_peft_model

import softprompt
from house import families as f
from softprompt import SoftPromptError
from softprompt.serving.outside import rows


def test_a_script_is_copied_whole(tmp_path: Path):
    for name in ("vllm_requests.py", "llama_cpp_prompt.py"):
        rows.copy_script(name, tmp_path)
        source = Path(rows.__file__).parent / "scripts" / name
        assert (tmp_path / name).read_text() == source.read_text()
        compile((tmp_path / name).read_text(), name, "exec")


@pytest.mark.parametrize("kind", ["Gemma", "Gemma2"])
def test_families_whose_embeddings_a_server_scales_are_refused(kind: str):
    config = getattr(tf, f"{kind}Config")(vocab_size=f.VOCAB, **f.GROUPED)
    model = get_peft_model(
        getattr(tf, f"{kind}ForCausalLM")(config), softprompt.prompt_tuning(3, task_type="CAUSAL_LM")
    )
    with pytest.raises(SoftPromptError, match=f"multiplies embeddings that it is given for {kind.lower()}"):
        rows.rows_of_causal(model, "GGUF")
