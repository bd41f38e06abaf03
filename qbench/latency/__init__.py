"""What products with quantized weights, and models made of them, cost in time and memory."""
