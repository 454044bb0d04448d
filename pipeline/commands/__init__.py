"""The commands of the command line, by the part of the work that they are about."""
