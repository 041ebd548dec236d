"""Classic bugs, put into the production code for as long as a simulated run lasts. Nothing but the simulator imports this."""
