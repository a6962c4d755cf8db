"""What a training run will need, from its configuration alone: parameters, memory, operations, time."""
