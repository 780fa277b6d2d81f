"""softprompt: steer a frozen language model with a few learned vectors. Importing it registers SOFTPROMPT with PEFT."""

from ._types import NonFiniteError as NonFiniteError
from ._types import SoftPromptError as SoftPromptError
from .methods import deep_prompts as deep_prompts
from .methods import dept as dept
from .methods import ept as ept
from .methods import equal_budget as equal_budget
from .methods import prompt_tuning as prompt_tuning
from .tuner import SoftPromptConfig as SoftPromptConfig
from .tuner import active_prompt as active_prompt
from .tuner import collapse as collapse
from .tuner import export_prompt_tuning as export_prompt_tuning
from .tuner import parameter_groups as parameter_groups
from .tuner import read_prompt as read_prompt

from ._version import __version__ as __version__
