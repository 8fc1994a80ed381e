"""What a simulator offers to those who train it: adapters, and the float model as a teacher."""
