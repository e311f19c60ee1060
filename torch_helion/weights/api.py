"""The public names of the package, gathered for its ``__init__``."""

from __future__ import annotations

import torch

if not hasattr(torch, "nn") or not hasattr(torch, "autograd"):
    # torch imports the packages that TORCH_LOGS names while it is being imported itself.
    raise ImportError("torch is still being imported")

from torch_helion.weights.convert.convert import convert
from torch_helion.weights.errors import WeightsError
from torch_helion.weights.file import read_header
from torch_helion.weights.handle import safe_open
from torch_helion.weights.header import Header, TensorInfo
from torch_helion.weights.load import load_file
from torch_helion.weights.model import LoadHandle, load_model, meta_model
from torch_helion.weights.plan import rank_plan
from torch_helion.weights.write import save_file, save_model

__all__ = [
    "Header",
    "LoadHandle",
    "TensorInfo",
    "WeightsError",
    "convert",
    "load_file",
    "load_model",
    "meta_model",
    "rank_plan",
    "read_header",
    "safe_open",
    "save_file",
    "save_model",
]
