"""Floor 6: what a trained prompt has become, and reports of runs."""

from .look import look as look
from .write import write_report as write_report
