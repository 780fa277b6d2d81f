"""Floor 3: how a prompt is placed. Hooks on the backbone stack, and everything PEFT needs to know."""

from .backbone import Backbone as Backbone
from .backbone import evaluating as evaluating
from .backbone import find_backbone as find_backbone
from .config import SoftPromptConfig as SoftPromptConfig
from .files import active_prompt as active_prompt
from .files import collapse as collapse
from .files import export_prompt_tuning as export_prompt_tuning
from .files import read_prompt as read_prompt
from .groups import parameter_groups as parameter_groups
from .labelled import projecting as projecting
from .model import SoftPromptModel as SoftPromptModel
from .pooling import PAIRINGS as PAIRINGS
from .pooling import POOLINGS as POOLINGS
from .pooling import compare_texts as compare_texts
from .pooling import pool as pool
from .processes import distribute_into as distribute_into
from .processes import first_of_machine as first_of_machine
from .processes import gathered as gathered
from .processes import is_first_process as is_first_process
from .processes import is_sharded as is_sharded
from .processes import save_adapter as save_adapter
from .processes import whole_adapter as whole_adapter
from .state import find_state as find_state
