"""The llvm target: tile IR to LLVM IR text to objects for every CPU, inside the process."""
