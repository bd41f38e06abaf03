"""A folder with a quantized model, as the Hugging Face world reads it."""
