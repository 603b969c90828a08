"""One attempt inside its own process: synthesis, quantization, accounting, checkpoints."""
