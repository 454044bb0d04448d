"""A data set to a trained model."""
