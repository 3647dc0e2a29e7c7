"""Doors to the kernel: one narrow module per interface. They raise `KernelError` and choose nothing."""
