"""The triton target: tile IR to the text of `@triton.jit` kernels."""
