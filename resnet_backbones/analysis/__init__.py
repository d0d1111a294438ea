"""What a network costs: parameters, FLOPs, activations."""
