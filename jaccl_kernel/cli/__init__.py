"""`jaccl ...`: every step as a terminal command. The commands parse options and print; steps do the work."""
