"""What each layer of a quantized model costs: alone in the unquantized one, and restored."""
