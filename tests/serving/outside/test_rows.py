"""The scripts of the package are copied as they are."""

from pathlib import Path

from softprompt.serving.outside import rows


def test_a_script_is_copied_whole(tmp_path: Path):
    for name in ("vllm_requests.py", "llama_cpp_prompt.py"):
        rows.copy_script(name, tmp_path)
        source = Path(rows.__file__).parent / "scripts" / name
        assert (tmp_path / name).read_text() == source.read_text()
        compile((tmp_path / name).read_text(), name, "exec")
