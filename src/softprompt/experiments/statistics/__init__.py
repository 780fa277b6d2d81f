"""Statistics of finished runs: means with intervals, paired comparisons, ranks, steps to a target.

All are pure functions of *lines*, one mapping per run (see `Scores`). A *setting* is (task, shots, rows); a *block* is a
setting with a seed, in which every method sees the same rows.

Means and comparisons speak of the settings that were chosen: only the seeds are a sample, so intervals resample the seeds within
each setting, and tests take blocks as units. Ranks take each setting as one unit, with the mean of its seeds. Every setting has the
same weight in a mean. Comparisons use only blocks that every compared method has finished; each result names what is left out.
"""

from .checkpoints import EARLY as EARLY
from .checkpoints import Chosen as Chosen
from .checkpoints import chosen_checkpoints as chosen_checkpoints
from .costs import Curve as Curve
from .costs import Shares as Shares
from .costs import curve_of as curve_of
from .costs import first_step as first_step
from .costs import relative_cost as relative_cost
from .costs import steps_to_target as steps_to_target
from .costs import trainings as trainings
from .intervals import FEW as FEW
from .intervals import Interval as Interval
from .intervals import Summary as Summary
from .intervals import bootstrap_interval as bootstrap_interval
from .intervals import median_interval as median_interval
from .intervals import overall as overall
from .intervals import summarize as summarize
from .mechanisms import KEPT as KEPT
from .mechanisms import Figure as Figure
from .mechanisms import mechanisms as mechanisms
from .paired import TIE as TIE
from .paired import Comparison as Comparison
from .paired import Comparisons as Comparisons
from .paired import WinTieLoss as WinTieLoss
from .paired import compare as compare
from .paired import holm as holm
from .paired import paired_p as paired_p
from .paired import win_tie_loss as win_tie_loss
from .ranks import ALPHA as ALPHA
from .ranks import Ranks as Ranks
from .ranks import critical_difference as critical_difference
from .ranks import rank as rank
from .scores import Block as Block
from .scores import LeftOut as LeftOut
from .scores import Line as Line
from .scores import Scores as Scores
from .scores import Setting as Setting
from .scores import block_of as block_of
from .scores import setting_of as setting_of
