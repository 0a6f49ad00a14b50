"""Equivalent rewritings of weights before quantization: a transform is one file, one function on tensors."""
