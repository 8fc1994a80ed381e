"""How good a quantized model is: one figure, by which schemes, steps of recipes and corrections are compared."""
