"""Fast forms of what `quant`, `synth` and the training loops define; imported by the worker only."""
