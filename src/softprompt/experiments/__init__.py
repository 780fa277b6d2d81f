"""Floor 7: experiments. A suite is methods x tasks x settings x seeds; each combination is a cell, one JSON line; a search tries settings."""

from .comparison import write_comparison as write_comparison
from .executors import ProcessPool as ProcessPool
from .executors import Ray as Ray
from .recipes import load_recipe as load_recipe
from .records import read_cells as read_cells
from .runner import run_suite as run_suite
from .sampler import Range as Range
from .settings import search_settings as search_settings
from .space import trials_of as trials_of
from .suite import Cell as Cell
from .suite import read_suite as read_suite
