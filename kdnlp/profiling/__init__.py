"""Parameters, floating-point operations and latency of a model; every name carries its unit."""
