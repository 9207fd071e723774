"""Used in every room: dtypes, checks of inputs, memory, files, clusters, names of normalisations."""
