"""Scripts that run in the environments of other packages, and import nothing of ours."""
