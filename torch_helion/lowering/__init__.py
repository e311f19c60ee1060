"""ATen to tile IR, written once for both front doors. Floor 2: imports ir and floor 0 only."""
