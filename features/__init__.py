"""What a row means: schema, vocabularies, encoding, records, and the same transform as a TensorFlow graph.

Imports nothing else of this project. Only the input pipeline and the serving transform
need TensorFlow at import, so that a preprocessing worker starts without it.
"""
