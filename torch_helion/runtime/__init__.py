"""Running compiled kernels: launching them, keeping their code and memory."""
