"""Which values fit together, and what this machine must have for them."""
