"""Parameters, floating-point operations and latency of a model; every name carries its unit."""

import os

# Else every pass under torch's profiler prints lines from below Python.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
