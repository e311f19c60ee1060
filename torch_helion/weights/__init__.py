"""Weights: a strict and fast safetensors reader, verification, safe migration from pickles.

    from torch_helion.weights import load_file, load_model, save_file

Stands alone: nothing here imports anything of the package but floor 0, and nothing unpickles.
"""

# ruff: noqa: F401
from torch_helion.weights.api import (
    Header,
    LoadHandle,
    TensorInfo,
    WeightsError,
    convert,
    load_file,
    load_model,
    meta_model,
    rank_plan,
    read_header,
    safe_open,
    save_file,
    save_model,
)
