"""The program in the words of the neutral graph, and back: nodes, sites, edits."""
