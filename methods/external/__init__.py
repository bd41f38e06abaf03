"""Methods of other packages, a file for each package."""
