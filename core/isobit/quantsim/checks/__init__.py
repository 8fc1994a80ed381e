"""What is checked so that nothing is lost in silence: the opened model, how much is quantized, the written file."""
