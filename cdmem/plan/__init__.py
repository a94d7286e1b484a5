"""What a configuration will cost, before it is run: parameters, FLOPs, memory and hours."""
