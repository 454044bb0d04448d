"""What a row means: schema, vocabularies, encoding, records, and the same transform as a TensorFlow graph.

This package imports no other package of clsd. Its modules that need TensorFlow are ``epoch_order``, ``input_pipeline``,
``serving_transform``, ``tf_runtime`` and ``keras_private``. A preprocessing worker imports none of them, so it starts without
TensorFlow.
"""
