"""Other quantization programs, each in an environment of its own, as methods of a grid."""
