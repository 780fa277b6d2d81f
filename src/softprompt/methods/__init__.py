"""Floor 4: a method is a builder, a function with a paper's hyper-parameters that returns a config."""

from ._budget import equal_budget as equal_budget
from .contrast import contrast as contrast
from .deep_prompts import deep_prompts as deep_prompts
from .dept import dept as dept
from .ept import ept as ept
from .infoprompt import infoprompt as infoprompt
from .prompt_tuning import prompt_tuning as prompt_tuning
from .spt import spt as spt
from .table import METHODS as METHODS
from .table import Method as Method
from .table import find_method as find_method
from .tsloss import tsloss as tsloss
from .ulpt import ulpt as ulpt
