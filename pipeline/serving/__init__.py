"""A trained model's export, and what asks exported models."""
