"""Click logs to a data set: the Beam job."""
