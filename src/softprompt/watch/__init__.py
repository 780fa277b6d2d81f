"""Floor 5: what is watched while a prompt is trained. Callbacks that change neither model nor random state."""

from .accuracy import TrainAccuracyCallback as TrainAccuracyCallback
from .bounds import InformationCallback as InformationCallback
from .bounds import information as information
from .shape import TopologyCallback as TopologyCallback
from .shape import read_topology as read_topology
from .shape import topology_summary as topology_summary
