"""Maximum-likelihood parameters of compartments, from signals."""
