"""Backbones, the confidence weights and the model that trains with them. Imports :mod:`features` and no job."""
