"""Names of other libraries for what this one has, so that programs written for them go on running."""
