"""The only room that knows the device: batches, one forward pass, cached activations."""
