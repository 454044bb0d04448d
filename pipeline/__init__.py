"""The jobs: preprocess, train, evaluate, export, predict, and the command line over them."""
