"""What a row means: schema, vocabularies, encoding, records, and the same transform as a TensorFlow graph.

Imports nothing else of this project. Only :mod:`features.parse` and :mod:`features.serving` need TensorFlow at import, so
that a preprocessing worker starts without it.
"""
