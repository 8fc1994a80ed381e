"""What integers gain in time, and what stays in float because they gain none."""
