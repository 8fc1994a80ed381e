"""The engine of pruning: which channels can go, which of them cost least, and what the rest can make up for."""
