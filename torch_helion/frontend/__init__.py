"""Python functions to tile IR: `host.split` cuts a kernel in two, `trace.trace` makes the IR."""
