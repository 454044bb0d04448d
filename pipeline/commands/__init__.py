"""The command line, one file per stage.

``data``: dataset, preprocess, inspect. ``training``: train. ``evaluation``: evaluate, compare, validate. ``serving``: export,
rollback, predict, score, skew. ``options``: options that several commands share. ``run`` is in :mod:`clsd.pipeline.cli`.
"""
