"""Many prompts over one frozen backbone, in mixed batches; no HTTP in it.

`PromptEngine` takes requests and owns the time; a `Shelf` owns the prompts; a `Lane` is one model that prompts share.
"""

from .engine import PromptEngine as PromptEngine
from .engine import Watcher as Watcher
from .request import Answer as Answer
from .request import ClosingError as ClosingError
from .request import Limits as Limits
from .request import OverloadedError as OverloadedError
from .request import Request as Request
from .request import TakenError as TakenError
from .request import TooLateError as TooLateError
from .request import TooLongError as TooLongError
from .request import UnknownPromptError as UnknownPromptError
from .request import Writing as Writing
from .shelf import Served as Served
from .shelf import Shelf as Shelf
