"""Backbones: one Keras model a file, named in the registry."""
