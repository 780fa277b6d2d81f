"""An adapter in the formats of other software: one file for each."""

from .gguf import export_gguf as export_gguf
from .onnx import export_onnx as export_onnx
from .peft import export_peft as export_peft
from .vllm import export_vllm as export_vllm
