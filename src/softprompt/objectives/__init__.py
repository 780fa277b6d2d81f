"""Floor 2: what is minimised beside the task's loss. Objectives read a `PromptedOutput`, never a model."""

from ._base import OF_ONE_INPUT as OF_ONE_INPUT
from ._base import SHARE_EVERY as SHARE_EVERY
from ._base import Objective as Objective
from ._base import ObjectiveSet as ObjectiveSet
from ._base import PromptedOutput as PromptedOutput
from ._base import info_nce as info_nce
from .cloud import NormControl as NormControl
from .cloud import PairControl as PairControl
from .cloud import check_entered as check_entered
from .consistency import consistency as consistency
from .contrastive import SupervisedContrast as SupervisedContrast
from .information import HeadInformation as HeadInformation
from .information import LatentDivergence as LatentDivergence
from .information import RepresentationInformation as RepresentationInformation
from .persistence import PersistenceObjective as PersistenceObjective
from .shares import Balance as Balance
from .table import OBJECTIVES as OBJECTIVES
from .table import build_objective as build_objective
from .table import build_objectives as build_objectives
from .table import check_objectives as check_objectives
from .table import objective as objective
from .ts_loss import TSLoss as TSLoss
