"""What a run will do and cost, from a look at its inputs and a short measurement; no cluster."""
