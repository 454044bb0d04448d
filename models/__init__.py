"""Backbones, the confidence weights, and the models that train with them."""
