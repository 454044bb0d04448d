"""A trained model's metrics, reports and comparisons."""
