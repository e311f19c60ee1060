"""``torch_helion.experimental``: names that may still change.

In: nothing. Out: what :mod:`torch_helion.kernel.experimental` defines.
"""

from torch_helion.kernel.experimental import aot_kernel as aot_kernel
from torch_helion.kernel.experimental import backward as backward
from torch_helion.kernel.experimental import from_cache as from_cache
