"""What runs and in which order: command line, recipe, stages, artifacts, data, training, reports."""
