"""Floor 5: what is watched while a prompt is trained. Callbacks that change neither model nor random state."""

from ._base import Watched as Watched
from ._base import Watcher as Watcher
from .accuracy import TrainAccuracyCallback as TrainAccuracyCallback
from .bounds import InformationCallback as InformationCallback
from .bounds import information as information
from .shape import TOPOLOGY as TOPOLOGY
from .shape import TopologyCallback as TopologyCallback
from .shape import read_topology as read_topology
from .shape import topology_records as topology_records
from .shape import topology_summary as topology_summary
from .states import STATES as STATES
from .states import StatesCallback as StatesCallback
from .states import read_states as read_states
from .table import WATCHERS as WATCHERS
from .table import tracked as tracked
from .table import watchers as watchers
