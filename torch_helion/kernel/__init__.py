"""Kernels as a user meets them: decorate, bind, choose a config, compile, launch, differentiate."""
