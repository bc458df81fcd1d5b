"""Credits beyond the plan: granted for a while, used in an exact order, given back in the reverse one."""
