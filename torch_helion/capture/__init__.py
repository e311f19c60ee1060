"""The backend: FX graphs to kernels, hosted by Inductor. Floor 7: imports everything below."""
