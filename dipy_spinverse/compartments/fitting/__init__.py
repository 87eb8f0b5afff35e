"""From signals to the likeliest parameters of compartments."""
