"""The tile IR: typed SSA over tiles with named axes. Floor 1: imports nothing of ours but floor 0."""
