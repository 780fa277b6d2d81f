"""Names of the package, with the file that defines each; read by type checkers, and at run time by lazy_loader."""

from . import bench as bench
from . import data as data
from . import methods as methods
from . import objectives as objectives
from . import prompts as prompts
from . import topology as topology
from . import training as training
from . import tuner as tuner
from ._types import NonFiniteError as NonFiniteError
from ._types import SoftPromptError as SoftPromptError
from .data import Task as Task
from .data import Verbalizer as Verbalizer
from .data import load_rows as load_rows
from .data import load_task as load_task
from .methods import LayerSearch as LayerSearch
from .methods import SearchCallback as SearchCallback
from .methods import contrast as contrast
from .methods import deep_prompts as deep_prompts
from .methods import dept as dept
from .methods import ept as ept
from .methods import equal_budget as equal_budget
from .methods import infoprompt as infoprompt
from .methods import prompt_tuning as prompt_tuning
from .methods import spt as spt
from .methods import tsloss as tsloss
from .objectives import objective as objective
from .training import ObjectivesCallback as ObjectivesCallback
from .training import PooledClassifier as PooledClassifier
from .training import Predictor as Predictor
from .training import PromptTrainer as PromptTrainer
from .training import RunOptions as RunOptions
from .training import TopologyCallback as TopologyCallback
from .training import VerbalizedClassifier as VerbalizedClassifier
from .training import add_below as add_below
from .training import add_unprompted as add_unprompted
from .training import classifier_for as classifier_for
from .training import embedded_backbone as embedded_backbone
from .training import information as information
from .training import inspect as inspect
from .training import load as load
from .training import read_topology as read_topology
from .training import train as train
from .tuner import SoftPromptConfig as SoftPromptConfig
from .tuner import active_prompt as active_prompt
from .tuner import collapse as collapse
from .tuner import export_prompt_tuning as export_prompt_tuning
from .tuner import parameter_groups as parameter_groups
from .tuner import read_prompt as read_prompt
from .tuner import save_adapter as save_adapter

__version__: str
__all__: list[str]
