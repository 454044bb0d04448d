"""The stages of the pipeline, what they share, and the command line."""
