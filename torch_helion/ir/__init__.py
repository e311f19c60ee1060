"""The tile IR: typed SSA over tiles with named axes. Floor 1: imports only floor 0."""
