"""Floor 4: from data and a backbone to a trained adapter, on `transformers.Trainer`."""

from .assemble import TaskCard as TaskCard
from .assemble import load as load
from .below import add_below as add_below
from .classifier import PooledClassifier as PooledClassifier
from .classifier import classifier_for as classifier_for
from .embedded import EMBEDDED as EMBEDDED
from .embedded import embedded_backbone as embedded_backbone
from .fit import learning_rate_for as learning_rate_for
from .information import InformationCallback as InformationCallback
from .information import information as information
from .inspection import inspect as inspect
from .objectives import ObjectivesCallback as ObjectivesCallback
from .objectives import add_unprompted as add_unprompted
from .options import RunOptions as RunOptions
from .options import parse_setting as parse_setting
from .options import read_yaml as read_yaml
from .options import to_yaml as to_yaml
from .plan import plan as plan
from .predict import Predictor as Predictor
from .run import RunResult as RunResult
from .run import train as train
from .topology import TopologyCallback as TopologyCallback
from .topology import read_topology as read_topology
from .trainer import PromptTrainer as PromptTrainer
from .verbalized import VerbalizedClassifier as VerbalizedClassifier
