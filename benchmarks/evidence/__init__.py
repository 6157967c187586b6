"""What the evidence is computed from: recorded rollouts, sketches of gradients, and their statistics."""
