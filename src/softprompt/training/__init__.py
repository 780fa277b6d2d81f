"""Floor 6: from data and a backbone to a trained adapter, on `transformers.Trainer`."""

from ..models import EMBEDDED as EMBEDDED
from ..models import PooledClassifier as PooledClassifier
from ..models import TaskCard as TaskCard
from ..models import VerbalizedClassifier as VerbalizedClassifier
from ..models import classifier_for as classifier_for
from ..models import embedded_backbone as embedded_backbone
from ..models import load as load
from ..serving import Predictor as Predictor
from ..watch import InformationCallback as InformationCallback
from ..watch import TopologyCallback as TopologyCallback
from ..watch import information as information
from ..watch import read_topology as read_topology
from .arguments import learning_rate_for as learning_rate_for
from .keys.options import RunOptions as RunOptions
from .keys.options import parse_setting as parse_setting
from .keys.options import read_yaml as read_yaml
from .keys.options import to_yaml as to_yaml
from .loop.critics import ObjectivesCallback as ObjectivesCallback
from .loop.trainer import PromptTrainer as PromptTrainer
from .output.outcome import RunResult as RunResult
from .output.share import push_run as push_run
from .plan import plan as plan
from .run import train as train
from .states import add_below as add_below
from .states import add_unprompted as add_unprompted
