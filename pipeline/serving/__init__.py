"""Export a trained model, and score rows with exported models."""
