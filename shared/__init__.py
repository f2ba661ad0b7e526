"""The thin layer that all papers share: NIfTI I/O, metrics, devices and checkpoints, the command line."""
