"""How the model is computed: device and precision, recomputation, compilation, float8, cost."""
