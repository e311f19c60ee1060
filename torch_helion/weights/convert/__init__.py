"""Pickle checkpoints to safetensors without executing or importing anything that they name."""
