"""Floor 1: persistent homology of point clouds. Pure functions of tensors, with exact gradients."""

from .diagrams import bottleneck as bottleneck
from .diagrams import metrics as metrics
from .diagrams import persistent_entropy as persistent_entropy
from .diagrams import wasserstein as wasserstein
from .rips import METRICS as METRICS
from .rips import Persistence as Persistence
from .rips import persistence as persistence
