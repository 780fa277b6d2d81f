"""What can take part in a comparison; a new contender is a file beside these and a line in the table."""

from ._base import COMMON_KEYS as COMMON_KEYS
from ._base import Contender as Contender
from ._base import Outcome as Outcome
from .frozen import run_zero_shot as run_zero_shot
from .table import OTHERS as OTHERS
from .table import find_contender as find_contender
