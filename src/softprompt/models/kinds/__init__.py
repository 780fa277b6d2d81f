"""Kinds of tasks, one file each: what their rows are, and how they are learned, predicted and scored."""

from ._base import Adapted as Adapted
from ._base import Card as Card
from ._base import Checked as Checked
from ._base import Kind as Kind
from ._texts import OfTexts as OfTexts
from .table import COLUMNS as COLUMNS
from .table import KINDS as KINDS
