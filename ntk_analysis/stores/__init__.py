"""Kernels of any kind on disk: cut into tiles, which devices or workers compute, checked, and resumed after a kill."""
