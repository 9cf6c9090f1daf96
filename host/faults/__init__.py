"""What goes wrong: fault models, the plans they draw, and how a plan reaches the gateware."""
