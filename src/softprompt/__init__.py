"""softprompt: steer a frozen language model with a few learned vectors.

Importing it registers SOFTPROMPT with PEFT. Names are loaded when they are first asked for (`__init__.pyi` lists them), so
that ``softprompt --help`` needs neither torch nor PEFT.
"""

import lazy_loader

from ._after_peft import register_with_peft
from ._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
register_with_peft()
