"""Floor 2: how a prompt is made. Prompts return tensors and have never heard of a backbone."""

from ._base import Prompt as Prompt
from ._base import PromptParts as PromptParts
from .compiled import CompiledPrompt as CompiledPrompt
from .compiled import no_virtual_tokens as no_virtual_tokens
from .decomposed import DecomposedPrompt as DecomposedPrompt
from .generated import GeneratedPrompt as GeneratedPrompt
from .initial import from_file as from_file
from .initial import label_rows as label_rows
from .initial import sample_rows as sample_rows
from .initial import tile_rows as tile_rows
from .instance import InstancePrompt as InstancePrompt
from .plain import PlainPrompt as PlainPrompt
from .projected import ProjectedPrompt as ProjectedPrompt
from .table import FORMS as FORMS
