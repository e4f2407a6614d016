"""A training step in a few Triton kernels: `plan.py` (what, and how large), `step.py` (the step), and the kernels."""
