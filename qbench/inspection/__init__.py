"""Where the bits of a model are, read from headers alone."""
