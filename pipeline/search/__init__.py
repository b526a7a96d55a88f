"""`microstill search`: the student with the best accuracy that keeps a budget of SRAM and flash."""
