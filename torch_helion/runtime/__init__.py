"""Running compiled kernels: launching them, keeping their code and memory."""

from torch_helion.runtime.public import __getattr__, get_num_sm  # noqa: F401
