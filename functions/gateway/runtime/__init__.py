"""How a function runs: what a process holds, and how Lambda enters it."""
