"""Floor 5: which layers a prompt should enter."""

from .layers import LayerSearch as LayerSearch
from .layers import SearchCallback as SearchCallback
from .layers import Selection as Selection
from .layers import check_budget as check_budget
from .layers import read_gates as read_gates
from .layers import split_for_search as split_for_search
from .steps import SharedScale as SharedScale
